"""Tiny image models with random weights, the files of adapters for them, and what diffusers makes of both."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]


def unet(*, xl: bool = False, linear: bool = False) -> Any:
    """A U-Net as Stable Diffusion 1 has it, or XL: attention without its own convolutions, further embeddings."""
    from diffusers import UNet2DConditionModel

    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
        "transformer_layers_per_block": [1, 2],
    }
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        cross_attention_dim=16,
        attention_head_dim=4,
        use_linear_projection=xl or linear,
        **(more if xl else {}),
    ).eval()


def flux(layers: int = 2, single: int = 2) -> Any:
    """A Flux transformer."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=single,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=24,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    ).eval()


def clip(hidden: int = 16, *, projection: bool = False) -> Any:
    """A CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=50, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=16, projection_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def modules_of(model: Any) -> dict[str, torch.Tensor]:
    """The weight of each linear module and convolution."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {name: module.weight.detach() for name, module in model.named_modules() if isinstance(module, kinds)}


def factors(weight: torch.Tensor, rank: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two factors of LoRA on a weight, large enough to be seen."""
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, *weight.shape[1:], generator=draw) * 0.2
    b = torch.randn(weight.shape[0], rank, *(1,) * (weight.dim() - 2), generator=draw) * 0.2
    return a, b


def adapted(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """The weight with the delta, by the definition."""
    return weight + scale * (b.flatten(1).double() @ a.flatten(1).double()).view_as(weight).to(weight.dtype)


def kohya(weights: Mapping[str, torch.Tensor], root: str, rank: int = 4, alpha: float = 2.0) -> tuple[Tensors, Tensors]:
    """LoRA on all modules as kohya's scripts write it, and the modules' weights with it.

    A convolution has half of the rank, and an alpha of 3.
    """
    file, made = Tensors(), Tensors()
    for seed, (name, weight) in enumerate(weights.items()):
        r, own = (rank, alpha) if weight.dim() == 2 else (rank // 2, 3.0)
        a, b = factors(weight, r, seed)
        key = f"{root}{name.replace('.', '_')}"
        file |= {f"{key}.lora_down.weight": a, f"{key}.lora_up.weight": b, f"{key}.alpha": torch.tensor(own)}
        made[f"{name}.weight"] = adapted(weight, a, b, own / r)
    return file, made


def dotted(weights: Mapping[str, torch.Tensor], root: str, rank: int = 4) -> tuple[Tensors, Tensors]:
    """LoRA on all modules under their own names, as diffusers and ComfyUI have it; and the weights with it."""
    file, made = Tensors(), Tensors()
    for seed, (name, weight) in enumerate(weights.items()):
        a, b = factors(weight, rank, seed)
        file |= {f"{root}{name}.lora_A.weight": a, f"{root}{name}.lora_B.weight": b}
        made[f"{name}.weight"] = adapted(weight, a, b, 1.0)
    return file, made


def saved(file: Mapping[str, torch.Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> Path:
    """The file, written."""
    save_file({name: tensor.contiguous() for name, tensor in file.items()}, path, metadata=dict(metadata or {}) or None)
    return path


def random_like(shapes: Mapping[str, Iterable[int]], seed: int = 0) -> Tensors:
    """Random tensors of these shapes."""
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(*shape, generator=draw) for name, shape in shapes.items()}


def flux_original(width: int = 32, layers: int = 2, single: int = 2) -> Tensors:
    """A Flux transformer as its authors' code stores it; what diffusers' converter wants to see."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, out: int, wide: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, wide), (out,)

    for name, wide in {"img_in": 4, "txt_in": 32}.items():
        linear(name, width, wide)
    for name, wide in {"time_in": 256, "vector_in": 24, "guidance_in": 256}.items():
        linear(f"{name}.in_layer", width, wide)
        linear(f"{name}.out_layer", width, width)
    for n in range(layers):
        for side in ("img", "txt"):
            at = f"double_blocks.{n}.{side}_"
            linear(f"{at}attn.qkv", 3 * width, width)
            linear(f"{at}attn.proj", width, width)
            linear(f"{at}mlp.0", 4 * width, width)
            linear(f"{at}mlp.2", width, 4 * width)
            linear(f"{at}mod.lin", 6 * width, width)
            shapes |= {f"{at}attn.norm.query_norm.scale": (16,), f"{at}attn.norm.key_norm.scale": (16,)}
    for n in range(single):
        at = f"single_blocks.{n}."
        linear(f"{at}linear1", 7 * width, width)
        linear(f"{at}linear2", width, 5 * width)
        linear(f"{at}modulation.lin", 3 * width, width)
        shapes |= {f"{at}norm.query_norm.scale": (16,), f"{at}norm.key_norm.scale": (16,)}
    linear("final_layer.linear", 4, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return random_like(shapes)


def converted(tensors: Tensors, converter: str, constants: Mapping[str, str] | None = None, **told: Any) -> Tensors:
    """What diffusers' own converter makes of a checkpoint in original names, with its constants for a tiny one."""
    from diffusers.loaders import single_file_utils

    source = inspect.getsource(getattr(single_file_utils, converter))
    for one, other in (constants or {}).items():
        assert one in source
        source = source.replace(one, other)
    room = dict(vars(single_file_utils))
    exec(source, room)
    function: Callable[..., Tensors] = room[converter]
    return function({name: tensor.clone() for name, tensor in tensors.items()}, **told)


def weights_in(tensors: Mapping[str, torch.Tensor], pattern: str = r".*") -> dict[str, torch.Tensor]:
    """The weights of linear modules and convolutions among the tensors."""
    names = [name for name, tensor in tensors.items() if name.endswith(".weight") and tensor.dim() > 1]
    return {name[:-7]: tensors[name] for name in names if re.fullmatch(pattern, name)}


def ldm_unet(model: Any) -> Tensors:
    """The tensors of a U-Net under the names of the original code, by surgery's own table: diffusers' converter must
    make of them what the model has.
    """
    from surgery.models.diffusion.unet import UNET

    state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    here = [name.rpartition(".")[0] for name in state]
    ends = {pair.diffusers[0]: pair.original for pair in UNET.pairs(here) if ".1.conv" not in pair.original}
    made = Tensors()
    for name, tensor in state.items():
        module = next(one for one in sorted(ends, key=len, reverse=True) if name.startswith(f"{one}."))
        made[f"{ends[module]}{name.removeprefix(module)}"] = tensor
    return made


def vae() -> Any:
    """An autoencoder, which adapters leave alone."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=16)


def pipeline(folder: Path, *, xl: bool = False) -> Path:
    """A pipeline of Stable Diffusion, saved; it has no tokenizer, for which nobody asks here."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    torch.manual_seed(1)
    parts = {
        "vae": vae(),
        "unet": unet(xl=xl),
        "text_encoder": clip(),
        "scheduler": DDIMScheduler(steps_offset=1, clip_sample=False),
        "tokenizer": None,
    }
    if xl:
        more = {"text_encoder_2": clip(24, projection=True), "tokenizer_2": None}
        made = StableDiffusionXLPipeline(**parts, **more)
    else:
        none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        made = StableDiffusionPipeline(**parts, **none)
    made.save_pretrained(folder)
    return folder


def outputs(loaded: Any, *, xl: bool = False) -> dict[str, torch.Tensor]:
    """What the U-Net and the text encoders of a live pipeline compute."""
    draw = torch.Generator().manual_seed(2)
    sample, states = torch.randn(2, 4, 8, 8, generator=draw), torch.randn(2, 5, 16, generator=draw)
    more = {"text_embeds": torch.randn(2, 8, generator=draw), "time_ids": torch.randn(2, 6, generator=draw)}
    tokens = torch.arange(3, 13).view(2, 5)
    with torch.no_grad():
        told = {"added_cond_kwargs": more} if xl else {}
        found = {"unet": loaded.unet(sample, torch.tensor([3, 7]), states, **told).sample}
        for name in ("text_encoder", "text_encoder_2") if xl else ("text_encoder",):
            found[name] = getattr(loaded, name)(tokens).last_hidden_state
    return found


def opened(folder: Path, *, xl: bool = False) -> Any:
    """The live pipeline."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    absent = ("tokenizer", "feature_extractor", "image_encoder", *(("tokenizer_2",) if xl else ("safety_checker",)))
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    return kind.from_pretrained(folder, **dict.fromkeys(absent))
