"""MLX: what `mx.dequantize` makes of its codes, bit for bit; and models whose config.json says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import FormatError, NotSupported, SurgeryError

MADE = Path(__file__).parent / "fixtures/mlx.safetensors"
MODULES = sorted({name.rpartition(".")[0] for name in load_file(MADE)})
ALL = {"group_size": 64, "bits": 4}


def parts_of(case: str, called: str = "m") -> dict[str, torch.Tensor]:
    """The stored parts of a weight, for a module of that name."""
    found = {name.rpartition("."): tensor for name, tensor in load_file(MADE).items()}
    return {f"{called}.{last}": t for (name, _, last), t in found.items() if name == case and last != "is"}


def said_of(case: str) -> dict[str, Any]:
    bits, group, kind = case.split("-")
    return {"bits": int(bits), "group_size": int(group), **({"mode": kind} if kind == "mxfp4" else {})}


def write(folder: Path, tensors: Mapping[str, torch.Tensor], said: Mapping[str, Any], *, twice: bool = True) -> Path:
    """A model as mlx-lm saves it, which says its quantisation twice."""
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors", {"format": "mlx"})
    config = {"model_type": "llama", "torch_dtype": "float16", "quantization": said}
    config |= {"quantization_config": said} if twice else {}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("case", MODULES)
def test_it_is_decoded_bit_for_bit(tmp_path: Path, case: str) -> None:
    base = surgery.open_checkpoint(write(tmp_path / "base", parts_of(case), said_of(case)))
    wanted = load_file(MADE)[f"{case}.is"]
    made = surgery.dequantize(base, dtype=str(wanted.dtype).removeprefix("torch."))
    assert torch.equal(made.load("m.weight").view(torch.uint8), wanted.view(torch.uint8))


def test_modules_have_bits_of_their_own_and_none(tmp_path: Path) -> None:
    said = {**ALL, "b": said_of("8-64-float16"), "e": said_of("3-32-float16"), "plain": False}
    tensors = parts_of("4-64-float16", "a") | parts_of("8-64-float16", "b") | parts_of("3-32-float16", "e")
    plain = torch.randn(4, 4).half()
    bias = torch.randn(4).half()
    folder = write(tmp_path / "base", tensors | {"plain.weight": plain, "a.bias": bias}, said)
    base = surgery.open_checkpoint(folder)
    found = surgery.inspect(folder)
    assert [one.scheme for one in found.quantization.schemes] == [
        "MLX, 4 bits, groups of 64",
        "MLX, 8 bits, groups of 64",
        "MLX, 3 bits, groups of 32",
    ]
    surgery.write(surgery.dequantize(base), tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")
    wanted = load_file(MADE)
    cases = {"a": "4-64-float16", "b": "8-64-float16", "e": "3-32-float16"}
    assert set(made) == {"a.weight", "b.weight", "e.weight", "plain.weight", "a.bias"}
    assert all(torch.equal(made[f"{name}.weight"], wanted[f"{case}.is"]) for name, case in cases.items())
    assert torch.equal(made["plain.weight"], plain) and torch.equal(made["a.bias"], bias)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {"model_type": "llama", "torch_dtype": "float16"}
    assert surgery.open_checkpoint(tmp_path / "out").metadata["model.safetensors"]["format"] == "pt"


@pytest.mark.parametrize("twice", [True, False])
def test_a_part_may_stay_quantised(tmp_path: Path, twice: bool) -> None:
    folder = write(tmp_path / "base", parts_of("4-64-float16", "a") | parts_of("4-64-float16", "b"), ALL, twice=twice)
    surgery.write(surgery.dequantize(surgery.open_checkpoint(folder), only="a"), tmp_path / "out")
    made = surgery.open_checkpoint(tmp_path / "out")
    assert set(made.tensors) == {"a.weight", "b.weight", "b.scales", "b.biases"}
    again = surgery.dequantize(made)
    assert torch.equal(again.load("b.weight"), load_file(MADE)["4-64-float16.is"])


@pytest.mark.parametrize("case", [one for one in MODULES if "stack" not in one])
def test_merging_nothing_gives_the_codes_and_something_the_nearest(tmp_path: Path, case: str) -> None:
    base = surgery.open_checkpoint(write(tmp_path / "base", parts_of(case), said_of(case)))
    rows, columns = surgery.dequantize(base)["m.weight"].shape
    for step in (0.0, 1.0):
        adapter = write_adapter(tmp_path / f"adapter{step}", rows, columns, step)
        made = surgery.merge(base, surgery.open_adapter(adapter), requantize=True, lossy=True)
        surgery.write(made, tmp_path / f"out{step}")
        now = load_file(tmp_path / f"out{step}/model.safetensors")
        stored = parts_of(case)
        same = [name for name in stored if torch.equal(now[name].view(torch.uint8), stored[name].view(torch.uint8))]
        assert set(now) == set(stored)
        assert ("m.weight" in same) == (step == 0)
        assert {*same, "m.weight"} == set(stored)
    exact = surgery.dequantize(base, dtype="float32").load("m.weight")
    meant = surgery.dequantize(surgery.open_checkpoint(tmp_path / "out1.0"), dtype="float32").load("m.weight")
    wanted = surgery.merge(base, surgery.open_adapter(adapter), dequantize=True, dtype="float32").load("m.weight")
    assert (meant - wanted).abs().max() <= (exact - wanted).abs().max()
    assert (meant - wanted).norm() < (exact - wanted).norm()


def write_adapter(folder: Path, rows: int, columns: int, step: float) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    low = {"A": torch.randn(2, columns), "B": step * torch.randn(rows, 2)}
    save_file({f"base_model.model.m.lora_{k}.weight": v for k, v in low.items()}, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["m"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


BROKEN = {
    "no scales": ({"m.weight": 1, "m.biases": 1}, ALL, FormatError, "without the scales"),
    "no biases": ({"m.weight": 1, "m.scales": 1}, ALL, FormatError, "not all that says"),
    "no codes": ({"m.scales": 1, "m.biases": 1}, ALL, FormatError, "not there"),
    "groups of others": (None, {**ALL, "group_size": 32}, FormatError, "another size"),
    "bits of others": (None, {**ALL, "bits": 8}, FormatError, "another size"),
    "bits of none": (None, {**ALL, "bits": 7}, FormatError, "none that MLX makes"),
    "bits that are a text": (None, {**ALL, "bits": "4"}, FormatError, "none that MLX makes"),
    "a mode of others": (None, {**ALL, "mode": "nvfp4"}, NotSupported, "nvfp4"),
    "said to be plain": (None, {**ALL, "m": False}, FormatError, "not quantised"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_contradicts_itself_is_refused(tmp_path: Path, name: str) -> None:
    kept, said, kind, what = BROKEN[name]
    parts = {n: t for n, t in parts_of("4-64-float16").items() if kept is None or n in kept}
    with pytest.raises(kind, match=what):
        surgery.dequantize(surgery.open_checkpoint(write(tmp_path / "base", parts, said)))


def test_a_bias_that_is_no_number_is_refused(tmp_path: Path) -> None:
    parts = parts_of("4-64-float16")
    parts["m.biases"][0, 0] = float("nan")
    made = surgery.dequantize(surgery.open_checkpoint(write(tmp_path / "base", parts, ALL)))
    with pytest.raises(SurgeryError, match="NaN"):
        made.load("m.weight")


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_fused_weights_are_split_with_scales_and_biases_and_come_back(tmp_path: Path, bits: int) -> None:
    config = {"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    config |= {"intermediate_size": 96, "num_hidden_layers": 1, "quantization": {"bits": bits, "group_size": 32}}
    at, tensors = "model.layers.0", {}
    torch.manual_seed(0)
    for module, rows in ((f"{at}.self_attn.qkv_proj", 128), (f"{at}.mlp.gate_up_proj", 192)):
        words = torch.randint(-(2**31), 2**31 - 1, (rows, 2 * bits), dtype=torch.int32)
        tensors[f"{module}.weight"] = words.view(torch.uint32)
        tensors |= {f"{module}.{last}": torch.randn(rows, 2).half() for last in ("scales", "biases")}
    folder = tmp_path / "base"
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    base = surgery.open_checkpoint(folder)
    surgery.write(surgery.split_gate_up(surgery.split_qkv(base)), tmp_path / "parts")
    parts = surgery.open_checkpoint(tmp_path / "parts")
    meant = surgery.dequantize(parts, dtype="float32")
    wanted = surgery.split_gate_up(surgery.split_qkv(surgery.dequantize(base, dtype="float32")))
    assert set(meant.tensors) == set(wanted.tensors)
    assert all(torch.equal(meant.load(name), wanted.load(name)) for name in wanted.tensors)
    surgery.write(surgery.fuse_gate_up(surgery.fuse_qkv(parts)), tmp_path / "back")
    back = load_file(tmp_path / "back/model.safetensors")
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name].view(torch.uint8), tensors[name].view(torch.uint8)) for name in tensors)
