"""Adapters in one naming, bases in the other: the result is what diffusers' converters make of the
original's merge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from image_models import (
    Tensors,
    converted,
    dotted,
    flux_original,
    kohya,
    ldm_unet,
    modules_of,
    random_like,
    saved,
    unet,
    weights_in,
)
from safetensors.torch import load_file, save_file

import surgery

FLUX = ("convert_flux_transformer_checkpoint_to_diffusers", {"inner_dim = 3072": "inner_dim = 32"}, {})


def sd3_original(width: int = 16, layers: int = 2) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, 4, width), "x_embedder.proj.weight": (width, 4, 2, 2)}
    shapes["x_embedder.proj.bias"] = (width,)

    def linear(name: str, out: int, wide: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, wide), (out,)

    for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0", "y_embedder.mlp.2", "context_embedder"):
        linear(name, width, width)
    for n in range(layers):
        for side in ("x_block", "context_block"):
            at, last = f"joint_blocks.{n}.{side}.", side == "context_block" and n == layers - 1
            linear(f"{at}attn.qkv", 3 * width, width)
            linear(f"{at}adaLN_modulation.1", (2 if last else 6) * width, width)
            if not last:
                linear(f"{at}attn.proj", width, width)
                linear(f"{at}mlp.fc1", 4 * width, width)
                linear(f"{at}mlp.fc2", width, 4 * width)
    linear("final_layer.linear", 4, width)
    linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return random_like(shapes)


def wan_original(width: int = 8) -> Tensors:
    shapes: dict[str, tuple[int, ...]] = {}
    names = ["text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2", "time_projection.1"]
    names += [f"blocks.{n}.{attn}.{x}" for n in (0, 1) for attn in ("self_attn", "cross_attn") for x in "qkvo"]
    names += [f"blocks.{n}.cross_attn.{x}_img" for n in (0, 1) for x in "kv"]
    names += [f"blocks.{n}.ffn.{x}" for n in (0, 1) for x in (0, 2)] + ["head.head"]
    for name in names:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (width, width), (width,)
    return random_like(shapes)


CASES = {
    "flux": (flux_original, *FLUX),
    "sd3": (sd3_original, "convert_sd3_transformer_checkpoint_to_diffusers", {}, {}),
    "wan": (wan_original, "convert_wan_transformer_to_diffusers", {}, {}),
}


def written(tensors: Mapping[str, torch.Tensor], path: Path, config: Mapping[str, Any] | None = None) -> Path:
    path.mkdir()
    save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path / "diffusion_pytorch_model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {"_class_name": "A"}))
    return path


def merged(base: Path, adapter: Path, out: Path) -> Tensors:
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), out)
    return load_file(next(out.glob("*.safetensors")))


def check_equal(found: Tensors, wanted: Tensors, base: Tensors) -> None:
    """Each tensor is what is wanted, and at least one is not the base's."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max(), name
    assert any((found[name] - base[name]).abs().max() > 1e-2 for name in base)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("root", ["lora_unet_", "diffusion_model."])
def test_an_adapter_in_original_names_on_a_base_in_those_of_diffusers(case: str, root: str, tmp_path: Path) -> None:
    make, converter, constants, told = CASES[case]
    original = make()
    weights = weights_in(original)
    file, made = kohya(weights, root) if root.endswith("_") else dotted(weights, root)
    base = converted(original, converter, constants, **told)
    wanted = converted(original | made, converter, constants, **told)
    found = merged(written(base, tmp_path / "base"), saved(file, tmp_path / "a.safetensors"), tmp_path / "out")
    check_equal(found, wanted, base)


@pytest.mark.parametrize("case", CASES)
def test_an_adapter_in_names_of_diffusers_on_a_base_in_original_ones(case: str, tmp_path: Path) -> None:
    make, converter, constants, told = CASES[case]
    original = make()
    base = converted(original, converter, constants, **told)
    file, made = dotted(weights_in(base), "transformer.")
    whole = tmp_path / "base.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in original.items()}, whole)
    found = merged(whole, saved(file, tmp_path / "a.safetensors"), tmp_path / "out")
    bare = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in found.items()}
    check_equal(converted(bare, converter, constants, **told), base | made, base)


def of_ldm(tensors: Tensors, model: Any) -> Tensors:
    prefixed = {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}
    return converted(prefixed, "convert_ldm_unet_checkpoint", config=dict(model.config))


@pytest.mark.parametrize("xl", [False, True])
def test_a_unet_and_an_adapter_in_the_other_naming(xl: bool, tmp_path: Path) -> None:
    """Original names on diffusers' folder, and those of diffusers on a file in original names."""
    torch.manual_seed(0)
    model = unet(xl=xl)
    base, original = {n: t.detach() for n, t in model.state_dict().items()}, ldm_unet(model)
    for name, tensor in of_ldm(original, model).items():
        assert torch.equal(tensor, base[name])
    file, made = kohya(weights_in(original), "lora_unet_")
    folder = tmp_path / "unet"
    model.save_pretrained(folder)
    found = merged(folder, saved(file, tmp_path / "a.safetensors"), tmp_path / "out")
    check_equal(found, of_ldm(original | made, model), base)
    file, made = kohya(modules_of(model), "lora_unet_")
    whole = saved({f"model.diffusion_model.{n}": t for n, t in original.items()}, tmp_path / "base.safetensors")
    found = merged(whole, saved(file, tmp_path / "b.safetensors"), tmp_path / "out2")
    bare = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in found.items()}
    check_equal(of_ldm(bare, model), base | made, base)
