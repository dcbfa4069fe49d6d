"""Rows of vision, audio and multimodal models against the models: split parts are what reaches their attention, and
fuse back to the same files; classes that keep q, k and v apart in memory load them.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from oracle import (
    Call,
    Case,
    Evidence,
    attention,
    build,
    check_controls,
    check_fuses_back,
    check_parts,
    check_round_trip,
    ending,
    evidence,
    evidence_of,
    keys_and_values,
    saves_as,
    tensors_in,
)
from safetensors.torch import save_file
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.models.sam import modeling_sam

import surgery
from surgery.errors import LayoutError, SurgeryError
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import Tensor, Zeros
from surgery.models.fused.detect import detect, detect_split
from surgery.models.fused.tables.vision import VISION

Q_K_V = ("q", "k", "v")
QKV = ("q_proj", "k_proj", "v_proj")
HEADS = (3, 3, 3)
SMALL = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3}
SAM = {
    **{
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 64,
        "patch_size": 16,
        "window_size": 2,
    },
    **{"global_attn_indexes": [1], "mlp_dim": 40, "output_channels": 12},
}
# hidden_size of Qwen2-VL's tower is its output's
GRID = {"depth": 2, "hidden_size": 48, "num_heads": 3, "patch_size": 4, "intermediate_size": 50}
STAGES = {"embed_dim": [24, 36], "depths": [1, 1], "num_heads": [2, 3], "num_groups": [2, 3]}


def of(modeling: str, name: str, config: str, **fields: Any) -> Callable[[], Any]:
    """Builds a class of a modeling module from its config's fields."""

    def build() -> Any:
        module = importlib.import_module(f"transformers.models.{modeling}.modeling_{modeling}")
        return getattr(module, name)(getattr(tf, config)(**fields))

    return build


def noise(*shape: int) -> torch.Tensor:
    """The same noise each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def image(*size: int) -> Callable[[], Mapping[str, Any]]:
    """Two images of three channels, or what has `size`."""
    return lambda: {"pixel_values": noise(*(size if len(size) > 2 else (2, 3, *size)))}


def patches(width: int, name: str = "hidden_states") -> Callable[[], Mapping[str, Any]]:
    """4 × 4 patches of one image, as the towers of Qwen's family take them."""
    return lambda: {name: noise(16, width), "grid_thw": torch.tensor([[1, 4, 4]])}


def whole(call: Call) -> list[torch.Tensor]:
    """q, k, v of all windows of one image, one after another."""
    return [torch.cat(windows, 2) for windows in zip(*(o for o in call.products if len(o) == 3), strict=True)]


def unscaled(call: Call) -> list[torch.Tensor]:
    """q, k, v of a module that multiplies q by 1 / √head_dim before the product, whatever it adds to it before the
    next one.
    """
    q, k = call.products[0]
    v = next(o[1] for o in call.products[1:] if o[0].shape == (*q.shape[:-1], k.shape[-1]))
    return [q * math.sqrt(q.shape[-1]), k.transpose(-1, -2), v]


def unpooled(call: Call) -> list[torch.Tensor]:
    """q, k, v of SAM 2, where q is pooled between its product with k and the attention."""
    q, k = call.products[0]
    v = next(operands for operands in call.products if len(operands) == 3)[2]
    return [q.transpose(1, 2) * math.sqrt(q.shape[-1]), k.transpose(-1, -2).transpose(1, 2), v]


def units(call: Call) -> list[torch.Tensor]:
    """q, k, v of Hiera, (batch, heads, windows, tokens, head_dim), with its tokens as they came."""
    return [state.transpose(2, 3).flatten(2, 3) for state in unscaled(call)]


def channels(call: Call) -> list[torch.Tensor]:
    """q, k, v of an attention between channels: (batch, groups, channels, tokens)."""
    return [state.transpose(-1, -2) for state in attention(call)]


def sam_like(modeling: str, name: str, config: str, **fields: Any) -> Case:
    """A tower that is SAM's."""
    states = fields.pop("states", attention)
    return Case(of(modeling, name, config, **SAM, **fields), image(64, 64), "attn.qkv", Q_K_V, HEADS, states=states)


def grid(modeling: str, name: str, config: str, width: int, heads: Sequence[int] = HEADS, **fields: Any) -> Case:
    """A tower of Qwen's kind, which takes patches of `width` numbers."""
    inputs = patches(width, fields.pop("takes", "hidden_states"))
    return Case(of(modeling, name, config, **{**GRID, **fields}), inputs, "attn.qkv", Q_K_V, tuple(heads), states=whole)


CASES: dict[str, Case] = {
    "sam": Case(tiny_models._sam, image(1, 3, 64, 64), "attn.qkv", Q_K_V, HEADS),
    "sam_hq": sam_like("sam_hq", "SamHQVisionModel", "SamHQVisionConfig", num_pos_feats=6),
    "got_ocr2": sam_like("got_ocr2", "GotOcr2VisionEncoder", "GotOcr2VisionConfig", states=unscaled),
    "deepseek_ocr2": sam_like(
        "deepseek_ocr2", "DeepseekOcr2SamVisionEncoder", "DeepseekOcr2SamVisionConfig", downsample_channels=[12, 12]
    ),
    "sam2": Case(
        of(
            "sam2",
            "Sam2HieraDetModel",
            "Sam2HieraDetConfig",
            **{"hidden_size": 24, "image_size": [32, 32], "blocks_per_stage": [1, 2], "embed_dim_per_stage": [24, 48]},
            **{
                "num_attention_heads_per_stage": [2, 2],
                "window_size_per_stage": [4, 2],
                "global_attention_blocks": [2],
            },
            **{"num_query_pool_stages": 1, "window_positional_embedding_background_size": [4, 4]},
        ),
        image(32, 32),
        "attn.qkv",
        Q_K_V,
        (2, 2, 2),
        states=unpooled,
    ),
    "hiera": Case(
        of(
            "hiera",
            "HieraModel",
            "HieraConfig",
            **{"embed_dim": 24, "image_size": [32, 32], "patch_stride": [4, 4], "depths": [1, 1], "num_heads": [3, 3]},
            **{
                "num_query_pool": 1,
                "query_stride": [1, 1],
                "masked_unit_size": [2, 2],
                "masked_unit_attention": [True, False],
            },
        ),
        image(32, 32),
        "attn.qkv",
        Q_K_V,
        HEADS,
        states=units,
    ),
    "vitdet": Case(
        of("vitdet", "VitDetModel", "VitDetConfig", **SMALL, image_size=64, patch_size=16, pretrain_image_size=64),
        image(64, 64),
        "attention.qkv",
        Q_K_V,
        HEADS,
        states=unscaled,
    ),
    "timesformer": Case(
        of("timesformer", "TimesformerModel", "TimesformerConfig", **SMALL, image_size=32, patch_size=16, num_frames=2),
        image(2, 2, 3, 32, 32),
        "attention.qkv",
        Q_K_V,
        HEADS,
    ),
    "seggpt": Case(
        of(
            "seggpt",
            "SegGptModel",
            "SegGptConfig",
            **SMALL,
            **{
                "image_size": [32, 16],
                "patch_size": 8,
                "pretrain_image_size": 16,
                "merge_index": 0,
                "intermediate_hidden_state_indices": [1],
            },
        ),
        lambda: {name: noise(1, 3, 16, 16) for name in ("pixel_values", "prompt_pixel_values", "prompt_masks")},
        "attention.qkv",
        Q_K_V,
        HEADS,
        states=unscaled,
    ),
    "qwen2_vl": grid("qwen2_vl", "Qwen2VisionTransformerPretrainedModel", "Qwen2VLVisionConfig", 96, embed_dim=36),
    "qwen2_5_vl": grid(
        "qwen2_5_vl",
        "Qwen2_5_VisionTransformerPretrainedModel",
        "Qwen2_5_VLVisionConfig",
        96,
        **{"window_size": 8, "fullatt_block_indexes": [1], "out_hidden_size": 20},
    ),
    "qwen3_vl": grid(
        "qwen3_vl",
        "Qwen3VLVisionModel",
        "Qwen3VLVisionConfig",
        96,
        **{"num_position_embeddings": 16, "out_hidden_size": 20, "deepstack_visual_indexes": [0]},
    ),
    "qwen3_5": grid(
        "qwen3_5", "Qwen3_5VisionModel", "Qwen3_5VisionConfig", 96, num_position_embeddings=16, out_hidden_size=20
    ),
    "glm4v": grid(
        "glm4v", "Glm4vVisionModel", "Glm4vVisionConfig", 96, attention_bias=True, image_size=16, out_hidden_size=48
    ),
    "ernie4_5_vl_moe": grid(
        "ernie4_5_vl_moe", "Ernie4_5_VLMoeVisionTransformerPretrainedModel", "Ernie4_5_VLMoeVisionConfig", 48
    ),
    "exaone4_5": grid(
        "exaone4_5",
        "Exaone4_5_VisionModel",
        "Exaone4_5_VisionConfig",
        96,
        (4, 2, 2),
        **{
            "num_heads": 4,
            "num_key_value_heads": 2,
            "window_size": 8,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 20,
        },
    ),
    "florence2 windows": Case(
        of(
            "florence2",
            "Florence2VisionBackbone",
            "Florence2VisionConfig",
            **{**STAGES, "num_heads": [3, 3]},
            window_size=4,
        ),
        lambda: {"hidden_states": noise(1, 3, 32, 32)},
        "window_attn.qkv",
        Q_K_V,
        HEADS,
    ),
    "florence2 channels": Case(
        of(
            "florence2",
            "Florence2VisionBackbone",
            "Florence2VisionConfig",
            **{**STAGES, "num_groups": [3, 3]},
            window_size=4,
        ),
        lambda: {"hidden_states": noise(1, 3, 32, 32)},
        "channel_attn.qkv",
        Q_K_V,
        HEADS,
        states=channels,
    ),
    "mgp-str": Case(
        of("mgp_str", "MgpstrModel", "MgpstrConfig", **SMALL, image_size=[16, 32], patch_size=8),
        image(16, 32),
        "attn.qkv",
        Q_K_V,
        HEADS,
    ),
    "blip": Case(
        of("blip", "BlipVisionModel", "BlipVisionConfig", **SMALL, image_size=32, patch_size=16),
        image(32, 32),
        "self_attn.qkv",
        Q_K_V,
        HEADS,
        shard="20KB",
    ),
    "blip-2": Case(
        of("blip_2", "Blip2VisionModel", "Blip2VisionConfig", **SMALL, image_size=32, patch_size=16),
        image(32, 32),
        "self_attn.qkv",
        Q_K_V,
        HEADS,
    ),
    "instructblip": Case(
        of(
            "instructblip", "InstructBlipVisionModel", "InstructBlipVisionConfig", **SMALL, image_size=32, patch_size=16
        ),
        image(32, 32),
        "self_attn.qkv",
        Q_K_V,
        HEADS,
    ),
    "pp_ocrv5_server_rec": Case(
        of(
            "pp_ocrv5_server_rec",
            "PPOCRV5ServerRecEncoderWithSVTR",
            "PPOCRV5ServerRecConfig",
            **{"hidden_size": 36, "num_attention_heads": 3, "conv_kernel_size": [1, 3]},
            backbone_config={"model_type": "hgnet_v2", "stage_out_channels": [8, 8, 8, 16]},
        ),
        lambda: {"hidden_states": noise(2, 16, 1, 8)},
        "self_attn.qkv",
        Q_K_V,
        HEADS,
    ),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Evidence]:
    """run(case) -> what it gives, made once."""
    return evidence_of(CASES, tmp_path_factory)


@pytest.mark.parametrize("name", CASES)
def test_parts_are_what_reaches_attention(name: str, run: Callable[[str], Evidence]) -> None:
    assert len(run(name).calls) >= 2
    check_parts(run(name))


@pytest.mark.parametrize("name", CASES)
def test_other_layouts_fail_the_same_comparison(name: str, run: Callable[[str], Evidence]) -> None:
    check_controls(run(name))


@pytest.mark.parametrize("name", CASES)
def test_fuse_gives_the_same_files(name: str, run: Callable[[str], Evidence]) -> None:
    check_round_trip(run(name))


# Torch's MultiheadAttention: computed again by torch with separate projections, from what was split


@dataclass(frozen=True)
class Pooled:
    """A model with modules of torch's MultiheadAttention that have `in_proj_weight`."""

    model: Callable[[], Any]
    inputs: Callable[[], Mapping[str, Any]]
    attention: str  # end of the modules' names
    save: Callable[[Any, Path], Any] = lambda model, folder: model.save_pretrained(folder)


SWIN = {
    **{
        "model_type": "swin",
        "image_size": 32,
        "patch_size": 2,
        "embed_dim": 12,
        "depths": [1] * 4,
        "num_heads": [2] * 4,
    },
    **{"window_size": 2, "out_features": ["stage1", "stage2", "stage3", "stage4"]},
}
MASKS = {
    **{"backbone_config": SWIN, "hidden_dim": 32, "mask_dim": 32, "num_attention_heads": 4, "encoder_layers": 1},
    **{"encoder_feedforward_dim": 40, "dim_feedforward": 40, "num_queries": 5, "decoder_layers": 3},
}


def aria(folder: str = "") -> Any:
    """Aria's config, of a small projector."""
    return tf.AriaConfig(vision_config={**SMALL, "model_type": "idefics3_vision"}, projector_patch_to_query_dict={9: 4})


POOLED: dict[str, Pooled] = {
    "siglip": Pooled(
        of("siglip", "SiglipVisionModel", "SiglipVisionConfig", **SMALL, image_size=32, patch_size=16),
        image(32, 32),
        "head.attention",
    ),
    "siglip2": Pooled(
        of("siglip2", "Siglip2VisionModel", "Siglip2VisionConfig", **SMALL, patch_size=4, num_patches=16),
        lambda: {
            "pixel_values": noise(2, 16, 48),
            "pixel_attention_mask": torch.ones(2, 16, dtype=torch.int),
            "spatial_shapes": torch.tensor([[4, 4], [4, 4]]),
        },
        "head.attention",
    ),
    "aria": Pooled(
        lambda: importlib.import_module("transformers.models.aria.modeling_aria").AriaProjector(aria()),
        lambda: {"key_value_states": noise(2, 9, 36)},
        "cross_attn.multihead_attn",
        saves_as("multi_modal_projector.", aria()),
    ),
    "mask2former": Pooled(
        of("mask2former", "Mask2FormerModel", "Mask2FormerConfig", **MASKS), image(32, 32), "cross_attn"
    ),
    "oneformer": Pooled(
        of(
            "oneformer",
            "OneFormerModel",
            "OneFormerConfig",
            **{
                **MASKS,
                "hidden_dim": 64,
                "mask_dim": 64,
                "conv_dim": 64,
                "task_seq_len": 7,
                "max_seq_len": 7,
                "query_dec_layers": 1,
                "is_training": True,
            },
            **{
                "text_encoder_width": 64,
                "text_encoder_context_length": 7,
                "text_encoder_num_layers": 1,
                "text_encoder_vocab_size": 50,
            },
        ),
        lambda: {
            **image(32, 32)(),
            "task_inputs": torch.ones(2, 7),
            "text_inputs": torch.ones(2, 3, 7, dtype=torch.long),
        },
        "attn",
    ),
    "bridgetower": Pooled(
        of(
            "bridgetower",
            "BridgeTowerVisionModel",
            "BridgeTowerVisionConfig",
            **{"hidden_size": 128, "num_hidden_layers": 2, "image_size": 32, "patch_size": 16},
        ),
        lambda: {"image": noise(2, 3, 32, 32)},
        "attn",
    ),
}


def separately(
    module: Any, given: Mapping[str, Any], parts: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """What the module computes, with projections of q, k and v of their own."""
    states = [given[name].transpose(0, 1) if module.batch_first else given[name] for name in ("query", "key", "value")]
    q, k, v = (weight for weight, _ in parts)
    made, _ = F.multi_head_attention_forward(
        *states, module.embed_dim, module.num_heads, None, torch.cat([bias for _, bias in parts]), None, None, False,
        0.0,
        module.out_proj.weight, module.out_proj.bias, training=False, key_padding_mask=given.get("key_padding_mask"),
        attn_mask=given.get("attn_mask"), need_weights=False,
        use_separate_proj_weight=True, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v,
    )  # fmt: skip
    return made.transpose(0, 1) if module.batch_first else made


def seen_by(model: Any, case: Pooled) -> list[tuple[str, Any, dict[str, Any], torch.Tensor]]:
    """(name, module, arguments, output) of each call of the model's MultiheadAttention modules."""
    seen: list[tuple[str, Any, dict[str, Any], torch.Tensor]] = []

    def hook(name: str) -> Callable[..., None]:
        def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            seen.append((name, module, dict(zip(("query", "key", "value"), args, strict=False)) | kwargs, output[0]))

        return record

    found = {
        n: m
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.MultiheadAttention) and n.endswith(case.attention)
    }
    for name, module in found.items():
        module.register_forward_hook(hook(name), with_kwargs=True)
    with torch.no_grad():
        model(**case.inputs())
    assert {name for name, *_ in seen} == set(found) and found
    return seen


@pytest.mark.parametrize("name", POOLED)
def test_in_proj_is_three_projections(name: str, tmp_path: Path) -> None:
    case = POOLED[name]
    model = build(Case(case.model, case.inputs, "", (), ()))
    case.save(model, tmp_path / "base")
    check_fuses_back(tmp_path)
    tensors = tensors_in(tmp_path / "split")
    assert not any("in_proj_" in n for n in tensors)
    for module, attend, given, output in seen_by(model, case):
        parts = [(ending(tensors, f"{module}.{p}.weight"), ending(tensors, f"{module}.{p}.bias")) for p in QKV]
        assert (separately(attend, given, parts) - output).abs().max() < 1e-5
        shuffled = [(w.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1), b) for w, b in parts]
        biases = [parts[i][1] for i in (0, 2, 1)]
        for wrong in (
            [parts[i] for i in (0, 2, 1)],
            shuffled,
            [(w, b) for (w, _), b in zip(parts, biases, strict=True)],
        ):
            assert (separately(attend, given, wrong) - output).abs().max() > 1e-4


# LeViT: projections with a BatchNorm, in which v is wider than q and k


def levit() -> Any:
    """A LeViT whose stages differ in heads, key_dim and ratio, with statistics in its norms."""
    config = tf.LevitConfig(
        **{
            "image_size": 32,
            "patch_size": 16,
            "hidden_sizes": [16, 32, 48],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
        },
        **{"key_dim": [4, 6, 8], "attention_ratio": [2, 3, 1]},
    )
    model = tf.LevitModel(config)
    for at, (name, buffer) in enumerate(model.named_buffers()):
        if "running" in name:
            buffer.add_(noise(*buffer.shape).abs() * 0.3)
        if "tracked" in name:
            buffer.add_(at)
    return model


LEVIT = {
    "queries_keys_values": (("queries", "keys", "values"), attention),
    "keys_values": (("keys", "values"), keys_and_values),
}


@pytest.mark.parametrize("fused", LEVIT)
def test_levit(fused: str, tmp_path: Path) -> None:
    parts, states = LEVIT[fused]
    case = Case(levit, image(32, 32), fused, parts, ())
    run = evidence(case, tmp_path)
    assert len(run.calls) > 1 and len({call.hidden.shape for call in run.calls}) > 1
    for call in run.calls:
        parent = call.module.removesuffix(fused)
        made = [normalised(call, run.parts, f"{parent}{part}") for part in parts]
        seen = [state.transpose(1, 2).flatten(2) for state in states(call)]
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(made, seen, strict=True))
        whole = normalised(call, run.fused, call.module)
        blocked = whole.split([m.shape[-1] for m in made], -1)
        assert not all(torch.allclose(a, b, atol=1e-2) for a, b in zip(blocked, seen, strict=True))
        tracked = {run.parts[f"{parent}{part}.batch_norm.num_batches_tracked"].item() for part in parts}
        assert tracked == {run.fused[f"{call.module}.batch_norm.num_batches_tracked"].item()}
    check_round_trip(run)


def normalised(call: Call, tensors: Mapping[str, torch.Tensor], stem: str) -> torch.Tensor:
    """What the linear and the norm called `stem` compute from the call's input."""
    get = {n.removeprefix(f"{stem}."): t for n, t in tensors.items() if n.startswith(f"{stem}.")}
    made = F.linear(call.hidden, get["linear.weight"])
    statistics = (get[f"batch_norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(made.flatten(0, 1), *statistics).unflatten(0, made.shape[:2])


# MobileViTV2: a convolution with a single channel of q


class Operands(TorchFunctionMode):
    """Records q, of which the softmax is taken, k, which that is multiplied with, and v, which is rectified."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[dict[str, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        part = {"softmax": "q", "mul": "k", "relu": "v"}.get(getattr(func, "__name__", ""))
        if part and self.calls and part not in self.calls[-1]:
            self.calls[-1][part] = args[0]
        return func(*args, **(kwargs or {}))


def test_mobilevitv2(tmp_path: Path) -> None:
    config = tf.MobileViTV2Config(
        image_size=64, base_attn_unit_dims=[8, 12, 16], n_attn_blocks=[1, 2, 1], width_multiplier=0.25
    )
    case = Case(lambda: tf.MobileViTV2Model(config), image(64, 64), "", (), ())
    model = build(case)
    model.save_pretrained(tmp_path / "base")
    check_fuses_back(tmp_path)
    tensors, recorder, modules = tensors_in(tmp_path / "split"), Operands(), dict(model.named_modules())
    names = [n for n in modules if n.endswith("attention.qkv_proj")]
    for name in names:
        modules[name].register_forward_pre_hook(lambda _, args: recorder.calls.append({"hidden": args[0]}))
    with torch.no_grad(), recorder:
        model(**case.inputs())
    assert len(names) == len(recorder.calls) == 4
    for name, call in zip(names, recorder.calls, strict=True):
        stems = {part[0]: f"{name.removesuffix('qkv_proj')}{part}.convolution" for part in QKV}
        made = {key: F.conv2d(call["hidden"], tensors[f"{s}.weight"], tensors[f"{s}.bias"]) for key, s in stems.items()}
        assert made["q"].shape[1] == 1
        assert all((made[key] - call[key]).abs().max() < 1e-5 for key in "qkv")
        assert (made["v"] - call["k"]).abs().max() > 1e-2


# Classes that keep q, k and v apart in memory: they load what was split, and compute the same


@dataclass(frozen=True)
class Loaded:
    """A model whose file is fused, and whose class is not."""

    model: Callable[[], Any]
    inputs: Callable[[], Mapping[str, Any]]
    fused: str  # in a name of the file
    parts: tuple[str, ...]  # instead, after the split


VIT = {**SMALL, "image_size": 32, "patch_size": 16}
LOADED: dict[str, Loaded] = {
    "tipsv2 text": Loaded(
        of("tipsv2", "Tipsv2TextModel", "Tipsv2TextConfig", **SMALL, vocab_size=50, max_position_embeddings=8),
        lambda: {"input_ids": torch.arange(1, 8)[None]},
        ".attn.in_proj_weight",
        tuple(f".attn.{part}.weight" for part in QKV),
    ),
    "tipsv2 vision": Loaded(
        of("tipsv2", "Tipsv2VisionModel", "Tipsv2VisionConfig", **VIT),
        image(32, 32),
        ".attn.qkv.weight",
        tuple(f".attention.{part}.weight" for part in QKV),
    ),
    "radio": Loaded(
        of(
            "radio",
            "RadioModel",
            "RadioConfig",
            **{k: v for k, v in VIT.items() if k != "intermediate_size"},
            max_img_size=64,
        ),
        image(32, 32),
        ".attn.qkv.weight",
        tuple(f".attention.{part}.weight" for part in QKV),
    ),
    "qianfan_ocr": Loaded(
        of(
            "qianfan_ocr",
            "QianfanOCRForConditionalGeneration",
            "QianfanOCRConfig",
            vision_config={**SMALL, "image_size": [32, 32], "patch_size": [8, 8]},
            text_config={**SMALL, "model_type": "qwen3", "vocab_size": 50, "head_dim": 12, "num_key_value_heads": 3},
            image_token_id=49,
        ),
        lambda: {"input_ids": torch.tensor([[49] * 4 + [1, 2, 3]]), "pixel_values": noise(1, 3, 32, 32)},
        ".attn.qkv.weight",
        tuple(f".attention.{part}.weight" for part in QKV),
    ),
    "unlimited_ocr": Loaded(
        of("unlimited_ocr", "UnlimitedOcrVisionEncoder", "UnlimitedOcrVisionEncoderConfig", **VIT),
        lambda: {"patch_embeds": noise(1, 36, 2, 2)},
        ".qkv_proj.weight",
        tuple(f".{part}.weight" for part in QKV),
    ),
    "rf_detr": Loaded(
        of(
            "rf_detr",
            "RfDetrModel",
            "RfDetrConfig",
            **{
                "d_model": 24,
                "decoder_self_attention_heads": 2,
                "decoder_cross_attention_heads": 2,
                "decoder_layers": 2,
            },
            **{"num_queries": 4, "group_detr": 2, "decoder_ffn_dim": 20},
            backbone_config={
                **{"model_type": "rf_detr_dinov2", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2},
                **{
                    "image_size": 56,
                    "patch_size": 14,
                    "num_windows": 1,
                    "out_indices": [2],
                    "window_block_indexes": [],
                },
            },
        ),
        image(1, 3, 56, 56),
        ".self_attn.in_proj_weight",
        tuple(f".self_attn.{part}.weight" for part in QKV),
    ),
}


@pytest.mark.parametrize("name", LOADED)
def test_classes_that_are_split_load_it(name: str, tmp_path: Path) -> None:
    case = LOADED[name]
    model = build(Case(case.model, case.inputs, "", (), ()))
    model.save_pretrained(tmp_path / "base")
    check_fuses_back(tmp_path)
    fused, parts = tensors_in(tmp_path / "base"), tensors_in(tmp_path / "split")
    assert any(case.fused in n for n in fused) and not any(case.fused in n for n in parts)
    assert all(any(part in n for n in parts) for part in case.parts)
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/config.json").write_bytes((tmp_path / "base/config.json").read_bytes())
    q, k, _ = case.parts
    swapped = {n.replace(q, k) if q in n else n.replace(k, q): t.contiguous() for n, t in parts.items()}
    save_file(swapped, tmp_path / "wrong/model.safetensors", metadata={"format": "pt"})
    right, split, wrong = (
        loaded(type(model), tmp_path / folder, case.inputs()) for folder in ("base", "split", "wrong")
    )
    assert torch.equal(right, split) and torch.equal(right, first(model, case.inputs()))
    assert (right - wrong).abs().max() > 1e-6


def loaded(kind: Any, folder: Path, inputs: Mapping[str, Any]) -> torch.Tensor:
    """What the class computes with a checkpoint that gives it exactly the tensors that it wants."""
    model, told = kind.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return first(model.eval(), inputs)


def first(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The first tensor of what the model computes."""
    with torch.no_grad():
        made = model(**inputs)
    return next(value for value in made.values() if isinstance(value, torch.Tensor))


# The guide's task: SAM with q, k and v of its own


class SamVisionAttentionSplit(modeling_sam.SamVisionAttention):
    """The attention of transformers' guide "how to hack models", without its hook: the checkpoint is split already."""

    def __init__(self, config: tf.SamVisionConfig, window_size: int) -> None:
        super().__init__(config, window_size)
        del self.qkv
        for part in Q_K_V:
            setattr(self, part, torch.nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias))

    def forward(
        self, hidden_states: torch.Tensor, output_attentions: bool | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch, height, width, _ = hidden_states.shape
        heads = self.num_attention_heads
        query, key, value = (
            getattr(self, part)(hidden_states).reshape(batch, height * width, heads, -1).transpose(1, 2).flatten(0, 1)
            for part in Q_K_V
        )
        scores = (query * self.scale) @ key.transpose(-2, -1)
        if self.use_rel_pos:
            decomposed = self.get_decomposed_rel_pos(
                query, self.rel_pos_h, self.rel_pos_w, (height, width), (height, width)
            )
            scores = scores + decomposed.reshape_as(scores)
        weights = F.softmax(scores, dtype=torch.float32, dim=-1).to(query.dtype)
        made = (weights @ value).unflatten(0, (batch, heads)).unflatten(2, (height, width))
        return self.proj(made.permute(0, 2, 3, 1, 4).flatten(3)), weights


class SamSplit(tf.SamModel):
    """SAM with that attention; layers keep their windows, and the global ones stay global."""

    def __init__(self, config: tf.SamConfig) -> None:
        super().__init__(config)
        for layer in self.vision_encoder.layers:
            layer.attn = SamVisionAttentionSplit(config.vision_config, layer.window_size)


def eager(kind: Any, folder: Path) -> Any:
    """The model of a checkpoint that gives it exactly its tensors, with the attention that is written out."""
    model, told = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"], told
    return model.eval()


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """SAM's checkpoint, and its split."""
    folder = tmp_path_factory.mktemp("sam-guide")
    tiny_models.save("sam", folder / "base")
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(folder / "base")), folder / "split")
    return folder / "base", folder / "split"


def test_the_guides_sam_loads_it(sam: tuple[Path, Path], tmp_path: Path) -> None:
    base, split = sam
    model = eager(SamSplit, split)
    windows = [layer.window_size for layer in model.vision_encoder.layers]
    assert (
        windows == [layer.window_size for layer in eager(tf.SamModel, base).vision_encoder.layers]
        and len(set(windows)) == 2
    )
    right = tiny_models.output(eager(tf.SamModel, base), "sam")
    assert away(tiny_models.output(model, "sam"), right) < 1e-5
    wrong, told = SamSplit.from_pretrained(base, attn_implementation="eager", output_loading_info=True)
    assert told["missing_keys"] and told["unexpected_keys"]  # the fused checkpoint does not load into it
    assert away(tiny_models.output(wrong.eval(), "sam"), right) > 1e-2


def away(made: torch.Tensor, right: torch.Tensor) -> float:
    """How far the farthest entry is, as a part of the greatest one."""
    return float((made - right).abs().max() / right.abs().max())


def test_the_guides_lora_of_sam_vit_base(capsys: pytest.CaptureFixture[str]) -> None:
    """r=16 on q and v of 12 layers of 768: 12 · 2 · 16 · (768 + 768)."""
    with torch.device("meta"):
        model = SamSplit(tf.SamConfig())
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules=["q", "v"])
    peft.get_peft_model(model, lora, low_cpu_mem_usage=True).print_trainable_parameters()
    assert capsys.readouterr().out.startswith("trainable params: 589,824 ||")


def test_train_on_q_and_v_merge_and_fuse(sam: tuple[Path, Path], tmp_path: Path) -> None:
    base, split = sam
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q", "v"])
    live = peft.get_peft_model(eager(SamSplit, split), lora).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_B" in name:
                parameter.copy_(noise(*parameter.shape) * 0.3)
    live.save_pretrained(tmp_path / "adapter")
    merged = surgery.merge(surgery.open_checkpoint(split), surgery.open_adapter(tmp_path / "adapter"))
    surgery.write(surgery.fuse_qkv(merged), tmp_path / "fused")
    fused = tiny_models.output(eager(tf.SamModel, tmp_path / "fused"), "sam")
    adapted, before = (
        tiny_models.output(live.base_model.model, "sam"),
        tiny_models.output(eager(tf.SamModel, base), "sam"),
    )
    assert away(adapted, before) > 1e-2
    assert away(fused, adapted) < 1e-5


# The rows, their types and their places

# Model types of the rows that the tests above check with the models' own arithmetic, and of those whose code was
# only read.
CHECKED = (
    *(
        "sam_vision_model",
        "sam_hq_vision_model",
        "got_ocr2_vision",
        "deepseek_ocr2_sam_vision_model",
        "sam2_hiera_det_model",
        "hiera",
    ),
    *(
        "vitdet",
        "seggpt",
        "timesformer",
        "qwen2_vl_vision",
        "qwen2_5_vl_vision",
        "qwen3_vl_vision",
        "glm4v_vision",
        "exaone4_5_vision",
    ),
    *(
        "florence_vision",
        "mgp-str",
        "blip_vision_model",
        "blip_2_vision_model",
        "pp_ocrv5_server_rec",
        "mobilevitv2",
        "levit",
    ),
    *("siglip_vision_model", "aria", "mask2former", "oneformer", "bridgetower_vision_model"),
    *(
        "rf_detr",
        "tipsv2_text_model",
        "tipsv2_vision_model",
        "radio",
        "qianfan_ocr_vision",
        "unlimited_ocr_vision_encoder",
    ),
)
READ = ("kimi_k25_vision", "step3p5_vision", "gradium_phonon_tts")


def test_each_row_was_checked_or_read() -> None:
    for row in VISION:
        assert (not set(row.model_types).isdisjoint(CHECKED)) != (not set(row.model_types).isdisjoint(READ)), row.source
    assert {*CHECKED, *READ} <= {kind for row in VISION for kind in row.model_types}


def test_checked_types_are_those_of_the_cases(run: Callable[[str], Evidence]) -> None:
    """Each row of `CHECKED` has a case: its modeling module, or the type that the case's config.json says."""
    kinds = {json.loads((run(name).base / "config.json").read_text())["model_type"] for name in CASES}
    others = {"levit", "mobilevitv2", *POOLED, *LOADED}
    told = {
        kind for kind in CHECKED if kind in kinds or any(kind.startswith(name.replace(" ", "_")) for name in others)
    }
    assert set(CHECKED) - told == {"sam_vision_model"} and "sam" in kinds  # a model, of which the row has the tower


# config.json as far as it matters, and fused modules in the file: of composite models, old configs, and towers alone
PLACES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"model_type": "sam", "vision_config": {"hidden_size": 8}}, "vision_encoder.layers.0.attn.qkv"),
    (
        {
            "model_type": "deepseek_vl_hybrid",
            "high_res_vision_config": {"model_type": "sam_vision_model", "hidden_size": 8},
        },
        "model.high_res_vision_model.vision_encoder.layers.0.attn.qkv",
    ),
    (
        {"model_type": "got_ocr2", "vision_config": {"model_type": "got_ocr2_vision", "hidden_size": 8}},
        "vision_tower.layers.0.attn.qkv",
    ),
    ({"model_type": "pp_formulanet", "vision_config": {"hidden_size": 8}}, "model.encoder.layers.0.attn.qkv"),
    (
        {"model_type": "slanext", "vision_config": {"hidden_size": 8}, "hidden_size": 5},
        "backbone.vision_tower.layers.0.attn.qkv",
    ),
    (
        {"model_type": "sam2_video", "vision_config": {"backbone_config": {}}},
        "vision_encoder.backbone.blocks.0.attn.qkv",
    ),
    ({"model_type": "vitmatte", "backbone_config": {"model_type": "vitdet"}}, "backbone.encoder.layer.0.attention.qkv"),
    ({"model_type": "timesformer"}, "timesformer.encoder.layer.0.temporal_attention.attention.qkv"),
    # transformers 4: a flat config of the text, whose width is not the tower's, and a tower without a type or with
    # the model's
    (
        {"model_type": "qwen2_vl", "hidden_size": 5, "vision_config": {"embed_dim": 8, "hidden_size": 5}},
        "visual.blocks.0.attn.qkv",
    ),
    ({"model_type": "qwen2_5_vl", "hidden_size": 5, "vision_config": {"hidden_size": 8}}, "visual.blocks.0.attn.qkv"),
    (
        {"model_type": "qwen2_5_vl", "hidden_size": 5, "vision_config": {"model_type": "qwen2_5_vl", "hidden_size": 8}},
        "visual.blocks.0.attn.qkv",
    ),
    (
        {"model_type": "qwen2_5_vl", "vision_config": {"model_type": "qwen2_5_vl_vision"}},
        "model.visual.blocks.0.attn.qkv",
    ),
    (
        {"model_type": "colqwen2", "vlm_config": {"model_type": "qwen2_vl", "vision_config": {}}},
        "vlm.visual.blocks.0.attn.qkv",
    ),
    (
        {"model_type": "hyperclovax_vision_v2", "vision_config": {"model_type": "qwen2_5_vl_vision"}},
        "model.vision_model.blocks.0.attn.qkv",
    ),
    (
        {
            "model_type": "qwen3_omni_moe",
            "thinker_config": {
                "model_type": "qwen3_omni_moe_thinker",
                "vision_config": {"model_type": "qwen3_omni_moe_vision_encoder"},
            },
        },
        "thinker.visual.blocks.0.attn.qkv",
    ),
    (
        {"model_type": "cosmos3_omni", "vision_config": {"model_type": "qwen3_vl_vision", "hidden_size": 8}},
        "blocks.0.attn.qkv",
    ),
    (
        {"model_type": "dots3_note", "vision_config": {"model_type": "dots3_note_vision_encoder"}},
        "vision_encoder.blocks.0.attn.qkv",
    ),
    ({"model_type": "florence2", "vision_config": {}}, "model.vision_tower.blocks.0.1.channel_block.channel_attn.qkv"),
    ({"model_type": "blip-2", "vision_config": {"hidden_size": 8}}, "vision_model.encoder.layers.0.self_attn.qkv"),
    ({"model_type": "pp_ocrv6_small_rec", "hidden_size": 8}, "head.encoder.svtr_block.0.self_attn.qkv"),
    (
        {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}},
        "vision_model.head.attention.in_proj",
    ),
    (
        {"model_type": "gemma3", "vision_config": {"model_type": "siglip_vision_model"}},
        "vision_tower.head.attention.in_proj",
    ),
    (
        {"model_type": "phi4_multimodal", "vision_config": {"model_type": "phi4_multimodal_vision"}},
        "model.embed_tokens_extend.image_embed.img_processor.head.attention.in_proj",
    ),
    ({"model_type": "bridgetower"}, "bridgetower.vision_model.visual.transformer.resblocks.0.attn.in_proj"),
    ({"model_type": "tipsv2"}, "text_encoder.transformer.resblocks.0.attn.in_proj"),
    (
        {"model_type": "nemotron_h_omni", "vision_config": {"model_type": "radio"}},
        "vision_model.radio_model.model.blocks.0.attn.qkv",
    ),
    (
        {
            "model_type": "unlimited_ocr",
            "vision_config": {"sam_config": {"model_type": "unlimited_ocr_sam_vision_model"}},
        },
        "model.sam_model.blocks.0.attn.qkv",
    ),
    ({"model_type": "kimi_k25", "vision_config": {"hidden_size": 8}}, "vision_tower.encoder.blocks.0.wqkv"),
    (
        {"model_type": "step3p7", "vision_config": {"model_type": "step3p5_vision"}},
        "vision_model.transformer.resblocks.0.attn.in_proj",
    ),
    ({"model_type": "gradium_phonon_tts", "hidden_size": 8}, "flow_lm.transformer.layers.0.self_attn.in_proj"),
)


@pytest.mark.parametrize(
    ("config", "module"), PLACES, ids=lambda value: value if isinstance(value, str) else value["model_type"]
)
def test_places(config: dict[str, Any], module: str) -> None:
    separator = "_" if module.endswith("in_proj") and "flow_lm" not in module else "."
    tensors: dict[str, Tensor] = {
        f"{module}{separator}weight": Zeros(F32, (24, 8)),
        f"{module}{separator}bias": Zeros(F32, (24,)),
    }
    (site,) = detect(config, tensors)
    assert (
        site.module == module and site.layout.lengths == (8, 8, 8) and site.row.source in {row.source for row in VISION}
    )
    parts: dict[str, Tensor] = {f"{part}.weight": Zeros(F32, (8, 8)) for part in site.parts}
    (place,) = detect_split(config, parts)
    assert place.module == module and place.layout == site.layout
    odd: dict[str, Tensor] = {f"{module}{separator}weight": Zeros(F32, (25, 8))}
    with pytest.raises(SurgeryError):
        [site.cut(name, tensor) for site in detect(config, odd) for name, tensor in odd.items()]


def test_a_width_that_is_not_the_towers_is_refused() -> None:
    """A tower that shares k and v between heads would have other rows: config.json tells."""
    tensors: dict[str, Tensor] = {"blocks.0.attn.qkv.weight": Zeros(F32, (24, 12))}
    with pytest.raises(LayoutError, match="24 entries are not 3 × 12") as caught:
        detect({"model_type": "qwen3_vl_vision", "hidden_size": 12}, tensors)
    assert caught.value.where == ("blocks.0.attn.qkv", "hidden_size of model type 'qwen3_vl_vision' is 12")


DECOYS = {
    "qwen2_5_vl": (
        "decoder.blocks.0.attn.qkv",
        "visual.blocks.0.mlp.qkv",
        "visual.blocks.x.attn.qkv",
        "visual.merger.qkv",
    ),
    "sam": ("mask_decoder.layers.0.attn.qkv", "vision_encoder.layers.0.attn.qkv.base"),
    "oneformer": (
        "model.transformer_module.decoder.layers.0.self_attn.self_attn.qkv",
        "decoder.layers.0.self_attn.qkv",
    ),
    "aria": ("multi_modal_projector.cross_attn.in_proj", "language_model.in_proj"),
    "levit": ("levit.encoder.stages.0.keys_values", "stages.0.layers.1.queries_keys_values"),
    "mobilevitv2": ("encoder.layer.0.conv_1x1.convolution",),
    "kimi_k25": ("mm_projector.in_proj", "language_model.model.blocks.0.wqkv"),
    "gradium_phonon_tts": ("codec.transformer.layers.0.self_attn.in_proj",),
}


@pytest.mark.parametrize("kind", DECOYS)
def test_decoys_are_left_alone(kind: str) -> None:
    """Modules that only look fused, and projections that are apart in the class itself."""
    natural = (
        "self_attn.self_attn.q_proj",
        "cross_attn.q_proj",
        "text_model.encoder.layers.0.self_attn.q",
        "x.attention.q_proj",
    )
    tensors: dict[str, Tensor] = {f"{module}.weight": Zeros(F32, (24, 8)) for module in (*DECOYS[kind], *natural)}
    assert not detect({"model_type": kind}, tensors) and not detect_split({"model_type": kind}, tensors)


def test_levit_without_its_numbers_is_refused() -> None:
    tensors: dict[str, Tensor] = {
        "levit.encoder.stages.1.layers.0.module.queries_keys_values.linear.weight": Zeros(F32, (24, 8))
    }
    config = {"model_type": "levit", "key_dim": [4], "num_attention_heads": [2, 2], "attention_ratio": [2, 2]}
    with pytest.raises(LayoutError, match=r"config\.json has none of key_dim"):
        detect(config, tensors)


def test_mobilevitv2_of_even_channels_is_refused() -> None:
    name = "mobilevitv2.encoder.layer.2.transformer.layer.0.attention.qkv_proj.convolution.weight"
    with pytest.raises(LayoutError, match="24 channels are not 1 of q and equally many of k and v"):
        detect({"model_type": "mobilevitv2"}, {name: Zeros(F32, (24, 8, 1, 1))})
