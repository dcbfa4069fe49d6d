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
from conftest import hashes
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


def lokr(weights: Mapping[str, torch.Tensor], root: str) -> tuple[Tensors, Tensors]:
    """LoKr with two whole factors on all modules, and LoHa where a module's name ends in 0; the weights with it."""
    file, made, draw = Tensors(), Tensors(), torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw) * 0.3

    for name, weight in weights.items():
        key, (out, wide) = f"{root}{name.replace('.', '_')}", weight.shape
        if name.endswith("0") or "adaLN" in name:
            parts = {"hada_w1_a": random(out, 2), "hada_w1_b": random(2, wide)}
            parts |= {"hada_w2_a": random(out, 2), "hada_w2_b": random(2, wide)}
            delta = parts["hada_w1_a"] @ parts["hada_w1_b"] * (parts["hada_w2_a"] @ parts["hada_w2_b"])
        else:
            parts = {"lokr_w1": random(4, 2), "lokr_w2": random(out // 4, wide // 2)}
            delta = torch.kron(parts["lokr_w1"], parts["lokr_w2"])
        file |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
        made[f"{name}.weight"] = weight + delta
    return file, made


def test_other_kinds_on_what_diffusers_has_in_parts(tmp_path: Path) -> None:
    """Factors of a fused projection that lie across its parts: four row blocks, of three parts and of four."""
    make, converter, constants, told = CASES["flux"]
    original = make()
    file, made = lokr(weights_in(original), "lora_unet_")
    base = converted(original, converter, constants, **told)
    wanted = converted(original | made, converter, constants, **told)
    folder, adapter = written(base, tmp_path / "base"), saved(file, tmp_path / "a.safetensors")
    check_equal(merged(folder, adapter, tmp_path / "out"), wanted, base)
    before = surgery.open_checkpoint(folder)
    surgery.write(surgery.reversible(surgery.merge(before, surgery.open_adapter(adapter)), before), tmp_path / "rev")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "rev")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(folder)
    found = surgery.verify(tmp_path / "out", base=folder, adapter=adapter)
    assert found.ok, found.checks


def test_rows_in_another_order_refuse_a_product_that_cannot_follow(tmp_path: Path) -> None:
    make, converter, constants, told = CASES["flux"]
    base = written(converted(make(), converter, constants, **told), tmp_path / "base")
    name = "lora_unet_final_layer_adaLN_modulation_1"
    file = {f"{name}.lokr_w1": torch.ones(4, 2), f"{name}.lokr_w2": torch.ones(16, 16)}
    adapter = surgery.open_adapter(saved(file, tmp_path / "a.safetensors"))
    with pytest.raises(surgery.errors.NotSupported, match="the other way round"):
        surgery.merge(surgery.open_checkpoint(base), adapter)


def test_xlabs_rows_are_those_of_diffusers_own_converter(tmp_path: Path) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as theirs

    make, converter, constants, told = CASES["flux"]
    base, file = converted(make(), converter, constants, **told), Tensors()
    sides = {"double_blocks.1.processor.{}_lora1": 96, "double_blocks.1.processor.{}_lora2": 96}
    sides |= {"single_blocks.1.processor.{}_lora": 96}
    for at in sides:
        for leaf in ("qkv", "proj"):
            rows, wide = 96 if leaf == "qkv" else 32, 160 if leaf == "proj" and "single" in at else 32
            file |= random_like(
                {f"{at.format(leaf)}.down.weight": (4, wide), f"{at.format(leaf)}.up.weight": (rows, 4)}
            )
    moved = theirs(dict(file))
    wanted = dict(base)
    for name in [name for name in moved if name.endswith("lora_A.weight")]:
        module = name.removeprefix("transformer.").removesuffix(".lora_A.weight")
        wanted[f"{module}.weight"] = base[f"{module}.weight"] + moved[name.replace("lora_A", "lora_B")] @ moved[name]
    folder = written(base, tmp_path / "base")
    check_equal(merged(folder, saved(file, tmp_path / "a.safetensors"), tmp_path / "out"), wanted, base)


def test_a_file_of_kohya_becomes_one_that_peft_loads(tmp_path: Path) -> None:
    """Converted with the base at hand, it computes live what the merge does."""
    from peft import PeftModel

    torch.manual_seed(0)
    model = unet()
    model.save_pretrained(tmp_path / "unet")
    adapter = surgery.open_adapter(saved(kohya(modules_of(model), "lora_unet_")[0], tmp_path / "a.safetensors"))
    base = surgery.open_checkpoint(tmp_path / "unet")
    surgery.write(surgery.convert_adapter(adapter, "peft", base), tmp_path / "peft")
    made = merged(tmp_path / "unet", tmp_path / "a.safetensors", tmp_path / "out")
    inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 7]), torch.randn(2, 5, 16)
    with torch.no_grad():
        before = model(*inputs).sample
        live = PeftModel.from_pretrained(model, tmp_path / "peft")(*inputs).sample
        other = unet()
        other.load_state_dict(made)
        found = other(*inputs).sample
    error = (found - live).abs().max()
    assert error <= 1e-5 * live.abs().max() and (before - live).abs().max() >= 1000 * error
