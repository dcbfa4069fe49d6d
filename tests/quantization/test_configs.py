"""What a config says of quantisation, and what it says where some or all weights are in 16 bits afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from made import Tensors, compress, fixtures, said_of_compressed, weights
from safetensors.torch import save_file

import surgery

INT4 = {"type": "int", "symmetric": True, "num_bits": 4, "strategy": "group", "group_size": 32}
INT8 = {"type": "int", "symmetric": True, "num_bits": 8, "strategy": "channel"}
FP8 = {"type": "float", "symmetric": True, "num_bits": 8, "strategy": "channel"}
PLAIN = torch.ones(4, 64, dtype=torch.bfloat16)


def written(folder: Path, tensors: Tensors, key: str, said: Any, files: dict[str, Any] | None = None) -> Path:
    """A checkpoint of these tensors, and what is said of it."""
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {"model_type": "llama", "dtype": "bfloat16", **({key: said} if key else {})}
    for name, content in {"config.json": config, **(files or {})}.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def module(name: str, kind: str, args: dict[str, Any]) -> tuple[Tensors, torch.Tensor]:
    """A module that compressed-tensors compressed, and its weight."""
    parts, decoded = compress(weights((8, 64)), kind, args)
    return {f"{name}.{part}": tensor for part, tensor in parts.items()}, decoded


def test_groups_of_modules_may_have_formats_of_their_own(tmp_path: Path) -> None:
    """Whole names go before patterns, and patterns before classes."""
    rows = {
        "a.q_proj": ("pack-quantized", INT4),
        "a.k_proj": ("int-quantized", INT8),
        "b.o_proj": ("float-quantized", FP8),
    }
    tensors, wanted = {}, {}
    for name, (kind, args) in rows.items():
        parts, wanted[f"{name}.weight"] = module(name, kind, args)
        tensors |= parts
    targets = {"a.q_proj": ["Linear"], "a.k_proj": ["re:.*[kv]_proj$"], "b.o_proj": ["b.o_proj"]}
    groups = {
        f"group_{i}": {"targets": targets[name], "format": kind, "weights": args}
        for i, (name, (kind, args)) in enumerate(rows.items())
    }
    said = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups, "ignore": None}
    base = surgery.open_checkpoint(written(tmp_path / "base", tensors, "quantization_config", said))
    made = surgery.dequantize(base)
    assert set(made.tensors) == set(wanted)
    assert all(torch.equal(made.load(name), value) for name, value in wanted.items())
    part = surgery.dequantize(base, only=r"b\.o_proj")
    assert part.config["quantization_config"] == {**said, "ignore": ["b.o_proj"]}


@pytest.mark.parametrize(
    ("key", "wrap"),
    [
        ("compression_config", lambda said: {**said, "quant_method": "sparseml"}),
        ("compression_config", lambda said: {k: v for k, v in said.items() if k != "quant_method"}),
        ("compression_config", lambda said: {"quantization_config": said, "sparsity_config": {"format": "dense"}}),
        ("quantization_config", lambda said: said),
    ],
)
def test_older_names_of_compressed_tensors(key: str, wrap: Any, tmp_path: Path) -> None:
    tensors, wanted = module("m.q_proj", "pack-quantized", INT4)
    other, _ = module("m.o_proj", "pack-quantized", INT4)
    said = wrap(said_of_compressed("pack-quantized", INT4))
    base = surgery.open_checkpoint(written(tmp_path / "base", tensors | other, key, said))
    whole = surgery.dequantize(base)
    assert torch.equal(whole.load("m.q_proj.weight"), wanted) and key not in whole.config
    part = surgery.dequantize(base, only=r"m\.o_proj")
    assert '"ignore": ["m.o_proj"]' in json.dumps(part.config[key])
    assert torch.equal(part.load("m.q_proj.weight_packed"), tensors["m.q_proj.weight_packed"])


def test_modules_that_the_list_has_already_are_not_added(tmp_path: Path) -> None:
    """By name, or by a pattern from the start of the name."""
    tensors, _ = module("a.b.q_proj", "pack-quantized", INT4)
    said = {**said_of_compressed("pack-quantized", INT4), "ignore": ["lm_head", r"re:.*\.gate$", "re:b"]}
    more, _ = module("b_proj", "pack-quantized", INT4)
    with pytest.raises(surgery.FormatError, match="lists as not quantised") as caught:
        surgery.dequantize(
            surgery.open_checkpoint(written(tmp_path / "x", tensors | more, "quantization_config", said))
        )
    assert "b_proj.weight_packed" in str(caught.value) and "a.b" not in str(caught.value)
    more, _ = module("c", "pack-quantized", INT4)
    base = surgery.open_checkpoint(written(tmp_path / "y", tensors | more, "quantization_config", said))
    ignore = surgery.dequantize(base, only="c").config["quantization_config"]["ignore"]
    assert ignore == ["lm_head", r"re:.*\.gate$", "re:b", "c"]


def test_scales_of_the_cache_go_with_the_last_weight(tmp_path: Path) -> None:
    tensors, _ = module("l.self_attn.k_proj", "float-quantized", FP8)
    more, _ = module("l.mlp.up_proj", "float-quantized", FP8)
    cache = {"l.self_attn.k_scale": torch.ones(1), "l.self_attn.v_scale": torch.ones(1)}
    cache |= {"l.self_attn.k_proj.input_scale": torch.ones(1), "l.self_attn.k_proj.output_scale": torch.ones(1)}
    said = said_of_compressed("float-quantized", FP8)
    base = surgery.open_checkpoint(written(tmp_path / "base", tensors | more | cache, "quantization_config", said))
    surgery.write(surgery.dequantize(base), tmp_path / "whole")
    names = {"l.self_attn.k_proj.weight", "l.mlp.up_proj.weight"}
    assert set(surgery.open_checkpoint(tmp_path / "whole").tensors) == names
    part = surgery.dequantize(base, only=".*k_proj")
    surgery.write(part, tmp_path / "part")
    kept = {"l.self_attn.k_scale", "l.self_attn.v_scale", "l.self_attn.k_proj.output_scale"}
    assert set(surgery.open_checkpoint(tmp_path / "part").tensors) == {*names, "l.mlp.up_proj.weight_scale", *kept}


def test_rotations_that_the_model_does_are_not_left_out(tmp_path: Path) -> None:
    """What is rotated in the weights alone is as it is; what their inputs need as well is refused."""
    tensors, wanted = module("m", "pack-quantized", INT4)
    for location, read in (("weight_output", True), ("input", False)):
        turned = {"config_groups": {"R": {"type": "hadamard", "apply": [{"targets": ["m"], "location": location}]}}}
        said = {**said_of_compressed("pack-quantized", INT4), "transform_config": turned}
        base = surgery.open_checkpoint(written(tmp_path / location, tensors, "quantization_config", said))
        if read:
            assert torch.equal(surgery.dequantize(base).load("m.weight"), wanted)
        else:
            with pytest.raises(surgery.NotSupported, match=r"rotated when the model runs \(input\)"):
                surgery.dequantize(base)


def nvfp4(name: str) -> tuple[Tensors, torch.Tensor]:
    made = fixtures("modelopt")["nvfp4-7x64"]()
    return {n.replace("m.", f"{name}."): tensor for n, tensor in made.tensors.items()}, made.weight


LEFT = ["lm_head", "*.gate*"]
OLD = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": LEFT}}
NEW = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": LEFT}


@pytest.mark.parametrize(("said", "file"), [(None, OLD), (NEW, None), (NEW, OLD)])
def test_modelopt_says_it_in_two_places(said: Any, file: Any, tmp_path: Path) -> None:
    tensors, wanted = nvfp4("l.up_proj")
    more, _ = nvfp4("l.q_proj")
    tensors |= more | {"l.q_proj.k_scale": torch.ones(1), "lm_head.weight": PLAIN}
    key, files = "quantization_config" if said else "", {"hf_quant_config.json": file} if file else {}
    base = surgery.open_checkpoint(written(tmp_path / "base", tensors, key, said, files))
    surgery.write(surgery.dequantize(base), tmp_path / "whole")
    whole = surgery.open_checkpoint(tmp_path / "whole")
    assert set(whole.tensors) == {"l.up_proj.weight", "l.q_proj.weight", "lm_head.weight"}
    assert torch.equal(whole.load("l.up_proj.weight"), wanted)
    assert "hf_quant_config.json" not in whole.files and "quantization_config" not in whole.config
    surgery.write(surgery.dequantize(base, only=".*q_proj"), tmp_path / "part")
    now = [*LEFT, "l.q_proj"]
    part = surgery.open_checkpoint(tmp_path / "part")
    assert {"l.up_proj.weight_scale_2", "l.q_proj.weight", "l.q_proj.k_scale"} < set(part.tensors)
    if said:
        assert part.config["quantization_config"] == {**NEW, "ignore": now}
    if file:
        found = json.loads((tmp_path / "part/hf_quant_config.json").read_text())
        assert found == {**OLD, "quantization": {**OLD["quantization"], "exclude_modules": now}}
