"""Diffusion transformers, live: a merged one computes what diffusers' own does with the adapter loaded into it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import Tensors, converted, dotted, kohya, saved, weights_in
from image_transformers import TRANSFORMERS, computed, transformer
from safetensors.torch import load_file

import surgery
from surgery.errors import NotPlaced, SurgeryError
from surgery.models.diffusion.called import called
from surgery.models.diffusion.components import DENOISER
from surgery.models.diffusion.naming import ORIGINAL

FILE = "diffusion_pytorch_model.safetensors"
CONVERTERS: dict[str, tuple[str, dict[str, str]]] = {
    "flux 2": ("convert_flux2_transformer_checkpoint_to_diffusers", {}),
    "wan": ("convert_wan_transformer_to_diffusers", {}),
    "ltx": ("convert_ltx_transformer_checkpoint_to_diffusers", {}),
    "hunyuan video": ("convert_hunyuan_video_transformer_to_diffusers", {"hidden_size = 3072": "hidden_size = 24"}),
    "lumina 2": ("convert_lumina2_to_diffusers", {"q_dim = 2304": "q_dim = 24", "v_dim = 768": "v_dim = 8"}),
    "z-image": ("convert_z_image_transformer_checkpoint_to_diffusers", {}),
}


def linear(model: Any) -> dict[str, torch.Tensor]:
    """The weight of each linear module."""
    return {n: m.weight.detach() for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}


def live(kind: str, file: Mapping[str, torch.Tensor], metadata: dict[str, Any] | None = None) -> torch.Tensor:
    """What diffusers' model computes with a file of its own form."""
    model = transformer(kind)
    model.load_lora_adapter(dict(file), prefix="transformer", metadata=metadata)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == len(file) // 2
    return computed(model, kind)


def folder(kind: str, place: Path) -> Path:
    transformer(kind).save_pretrained(place)
    return place


def merged(kind: str, base: Path, adapter: Path, out: Path, **told: Any) -> torch.Tensor:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told), out)
    return computed(type(transformer(kind)).from_pretrained(out).eval(), kind)


def check_same(found: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor) -> None:
    error, effect = (found - wanted).abs().max(), (base - wanted).abs().max()
    assert error <= 1e-5 * wanted.abs().max()
    assert effect >= 1000 * error and effect > 1e-3


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_in_diffusers_names(kind: str, tmp_path: Path) -> None:
    """All linear modules at once, and controls: as it was, twice as strong, one module left out."""
    file = {n: t * 0.5 for n, t in dotted(linear(transformer(kind)), "transformer.")[0].items()}
    base, adapter = folder(kind, tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    before, wanted = computed(transformer(kind), kind), live(kind, file)
    check_same(merged(kind, base, adapter, tmp_path / "out"), wanted, before)
    left = next(n for n in file if "to_out" in n).rpartition(".lora")[0]
    for control in (
        before,
        merged(kind, base, adapter, tmp_path / "twice", scale=2.0),
        merged(kind, base, adapter, tmp_path / "less", except_=left.removeprefix("transformer.")),
    ):
        with pytest.raises(AssertionError):
            check_same(control, wanted, before)


def original_of(kind: str) -> Tensors:
    """The linear modules of the model under the original's names, by surgery's own table: diffusers' converter must
    make of them what the model has.
    """
    state = {n: t.detach() for n, t in transformer(kind).state_dict().items()}
    weights = {f"{n}.weight" for n in linear(transformer(kind))}
    state = {n: t for n, t in state.items() if f"{n.rpartition('.')[0]}.weight" in weights}
    found = called({n.removesuffix(".weight"): tuple(state[n].shape) for n in weights}, DENOISER.namings, ORIGINAL)
    assert found.naming is not None
    parts = {part: site for site in found.fused for part in site.parts}
    made = Tensors()
    for name, tensor in state.items():
        module, _, leaf = name.rpartition(".")
        if module in parts:
            site = parts[module]
            made[f"{found.names[site.module]}.{leaf}"] = torch.cat([state[f"{one}.{leaf}"] for one in site.parts])
        else:
            halves = tensor.chunk(2)[::-1] if module in found.swapped else [tensor]
            made[f"{found.names[module]}.{leaf}"] = torch.cat(list(halves))
    return made


@pytest.mark.parametrize("kind", CONVERTERS)
def test_in_the_originals_names(kind: str, tmp_path: Path) -> None:
    """The merged weights are what diffusers' converter makes of the original's; in its own form the adapter computes
    the same live; and back again it is the first file.
    """
    converter, constants = CONVERTERS[kind]
    original, state = original_of(kind), transformer(kind).state_dict()
    for name, tensor in converted(original, converter, constants).items():
        assert torch.equal(tensor, state[name]), name
    file, made = kohya(weights_in(original), "lora_unet_")
    base, adapter = folder(kind, tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    found = merged(kind, base, adapter, tmp_path / "out")
    weights = load_file(tmp_path / "out" / FILE)
    for name, tensor in converted(original | made, converter, constants).items():
        assert (weights[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name
    opened = surgery.open_checkpoint(base)
    surgery.write(surgery.convert_adapter(surgery.open_adapter(adapter), "diffusers", opened), tmp_path / "form")
    form = load_file(next((tmp_path / "form").glob("*.safetensors")))
    scaled = {n: t * 0.5 if "lora_B" in n else t for n, t in form.items()}  # alpha / rank of `kohya`
    check_same(found, live(kind, scaled), computed(transformer(kind), kind))
    if kind != "z-image":  # whose files have diffusers' names
        there = surgery.open_adapter(tmp_path / "form")
        surgery.write(surgery.convert_adapter(there, "kohya", opened), tmp_path / "back")
        back = load_file(tmp_path / "back/lora.safetensors")
        assert back.keys() == file.keys() and all(torch.equal(back[n], t) for n, t in file.items())


@pytest.mark.parametrize("kind", CONVERTERS)
def test_bases_in_the_originals_names(kind: str, tmp_path: Path) -> None:
    """A single file in them, and an adapter in those of diffusers."""
    converter, constants = CONVERTERS[kind]
    original, state = original_of(kind), transformer(kind).state_dict()
    file, made = dotted(linear(transformer(kind)), "transformer.")
    base = saved({f"model.diffusion_model.{n}": t for n, t in original.items()}, tmp_path / "base.safetensors")
    adapter = surgery.open_adapter(saved(file, tmp_path / "a.safetensors"))
    surgery.write(surgery.merge(surgery.open_checkpoint(base), adapter), tmp_path / "out")
    weights = load_file(next((tmp_path / "out").glob("*.safetensors")))
    bare = {n.removeprefix("model.diffusion_model."): t for n, t in weights.items()}
    for name, tensor in converted(bare, converter, constants).items():
        wanted = made.get(name, state[name])
        assert (tensor - wanted).abs().max() <= 1e-5 * wanted.abs().max(), name


def theirs(name: str, numbers: Mapping[str, str]) -> Callable[[Tensors], Tensors]:
    """diffusers' converter of LoRA, with its numbers for a tiny model."""
    from diffusers.loaders import lora_conversion_utils

    source = inspect.getsource(getattr(lora_conversion_utils, name))
    for one, other in numbers.items():
        assert one in source
        source = source.replace(one, other)
    room = dict(vars(lora_conversion_utils))
    exec(source, room)
    function: Callable[[Tensors], Tensors] = room[name]
    return function


def test_a_flux_file_of_kohya_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    """On the blocks, which are all that diffusers applies; and all else that it passes over is merged as well."""
    from image_models import flux_original

    shapes = {n: t for n, t in weights_in(flux_original()).items() if "_blocks." in n}
    file = {n: t * 0.7 if t.dim() else t for n, t in kohya(shapes, "lora_unet_")[0].items()}
    base, adapter = folder("flux", tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    moved = theirs("_convert_kohya_flux_lora_to_diffusers", {"3072": "32", "12288": "128"})(dict(file))
    before, wanted = computed(transformer("flux"), "flux"), live("flux", moved)
    check_same(merged("flux", base, adapter, tmp_path / "out"), wanted, before)
    opened = surgery.open_checkpoint(base)
    there = surgery.convert_adapter(surgery.open_adapter(adapter), "diffusers", opened)
    surgery.write(there, tmp_path / "there")
    again = merged("flux", base, tmp_path / "there", tmp_path / "again")
    check_same(again, wanted, before)
    surgery.write(surgery.convert_adapter(surgery.open_adapter(tmp_path / "there"), "kohya", opened), tmp_path / "back")
    back = load_file(tmp_path / "back/lora.safetensors")
    assert back.keys() == file.keys() and all(torch.equal(back[n], t) for n, t in file.items())


def test_flux_parts_of_their_own_are_fused_for_kohya(tmp_path: Path) -> None:
    """q without k, and v of another rank: blocks of one matrix, which diffusers' converter reads as what they were."""
    model = transformer("flux")
    weights = {n: w for n, w in linear(model).items() if n.endswith(("attn.to_q", "proj_mlp", "attn.add_k_proj"))}
    file = dotted(weights, "transformer.")[0]
    file |= dotted({n: w for n, w in linear(model).items() if n.endswith("attn.to_v")}, "transformer.", rank=2)[0]
    base, adapter = folder("flux", tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    surgery.write(
        surgery.convert_adapter(surgery.open_adapter(adapter), "kohya", surgery.open_checkpoint(base)), tmp_path / "k"
    )
    made = load_file(tmp_path / "k/lora.safetensors")
    assert made["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (6, 32)
    assert made["lora_unet_single_blocks_1_linear1.lora_down.weight"].shape == (10, 32)
    moved = theirs("_convert_kohya_flux_lora_to_diffusers", {"3072": "32", "12288": "128"})(made)
    check_same(live("flux", moved), live("flux", file), computed(model, "flux"))


def test_a_wan_file_is_what_diffusers_makes_of_it(tmp_path: Path) -> None:
    """In ComfyUI's names, with differences of whole weights and biases, which diffusers has but for the former."""
    original = original_of("wan")
    shapes = {n: t for n, t in weights_in(original).items() if n.startswith("blocks.")}
    file = {n: t * 0.7 for n, t in dotted(shapes, "diffusion_model.")[0].items()}
    base, adapter = folder("wan", tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    moved = theirs("_convert_non_diffusers_wan_lora_to_diffusers", {})(dict(file))
    before, wanted = computed(transformer("wan"), "wan"), live("wan", moved)
    check_same(merged("wan", base, adapter, tmp_path / "out"), wanted, before)


def test_a_network_without_a_table_is_named(tmp_path: Path) -> None:
    """Names of an unknown network: those that are none of the base's own, and what kohya's scripts would call them."""
    import diffusers

    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, out_channels=4, pos_embed_max_size=16,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    base = surgery.open_checkpoint(tmp_path / "base")
    own = surgery.open_adapter(saved(dotted(linear(model), "transformer.")[0], tmp_path / "own.safetensors"))
    assert surgery.merge(base, own).tensors
    with pytest.raises(NotPlaced, match=r"AuraFlowTransformer2DModel(?s:.*)--to peft"):
        surgery.convert_adapter(own, "kohya", base)
    other = dotted({"double_layers.0.attn.w1q": torch.zeros(16, 16)}, "diffusion_model.")[0]
    with pytest.raises(SurgeryError, match=r"double_layers\.0\.attn\.w1q"):
        surgery.merge(base, surgery.open_adapter(saved(other, tmp_path / "other.safetensors")))
