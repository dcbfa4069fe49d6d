"""Quantised weights compared as what their codes mean."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from quantization.live import HOW, Quantised, adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

ALL = (*HOW, "fp8")
UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("how", ALL)
def test_codes_against_16_bits(quantised: Quantised, how: str) -> None:
    """The distance is the quantisation error, by transformers' own decoding."""
    base = quantised(how)
    found = surgery.diff(base, base.parent / "plain")
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    live = live if how == "fp8" else live.dequantize()
    plain = load_file(base.parent / "plain/model.safetensors")
    assert len(found.decoded) == 14 and not found.recoded
    for change in found.decoded:
        mine = live.get_parameter(change.name).detach().float()
        wanted = (mine - plain[change.name].float()).norm() / mine.norm()
        assert change.measure and change.measure.relative == pytest.approx(
            float(wanted), rel=0.06
        )  # rounded once there
        assert change.b == "BF16"
    assert all(change.measure is None for change in found.unlike)
    one = surgery.diff(base, base.parent / "plain", tensors=".*layers.0.mlp.up_proj.*")
    assert [change.name for change in one.decoded] == [UP]


def test_schemes_against_each_other(quantised: Quantised) -> None:
    found = surgery.diff(quantised("nf4"), quantised("int8"))
    assert {(c.a.split(",")[0], c.b) for c in found.decoded} == {("bitsandbytes NF4", "bitsandbytes LLM.int8")}
    assert all(c.measure and 0.05 < (c.measure.relative or 0) < 0.2 for c in found.decoded)
    said = CliRunner().invoke(app, ["diff", str(quantised("nf4")), str(quantised("int8"))]).stdout
    assert "bitsandbytes LLM.int8" in said and UP in said


def test_what_was_merged_is_what_differs(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("int8")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj"])
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), requantize=True)
    surgery.write(merged, tmp_path / "out")
    found = surgery.diff(base, tmp_path / "out")
    assert [c.name for c in found.decoded] == [f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1)]
    assert not found.recoded and [c.measure for c in found.changed] == [None, None]
    assert surgery.diff(base, base).decoded == ()


def test_other_codes_with_the_same_values_are_told(quantised: Quantised, tmp_path: Path) -> None:
    """Scales twice as large on codes that are half as large: fp8 has a number for each half of one, but the least."""
    base = quantised("fp8")
    shutil.copytree(base, tmp_path / "out")
    path = next(p for p in (tmp_path / "out").glob("*.safetensors") if UP in load_file(p))
    tensors = load_file(path)
    codes = tensors[UP].float()
    halved = torch.where(codes.abs() >= 0.25, codes / 2, torch.zeros(()))
    tensors[UP], tensors[f"{UP}_scale_inv"] = halved.to(torch.float8_e4m3fn), tensors[f"{UP}_scale_inv"] * 2
    save_file(tensors, path, {"format": "pt"})
    base2 = tmp_path / "base"
    shutil.copytree(base, base2)
    tensors[UP] = (2 * halved).to(torch.float8_e4m3fn)
    tensors[f"{UP}_scale_inv"] = tensors[f"{UP}_scale_inv"] / 2
    save_file(tensors, base2 / path.name, {"format": "pt"})
    found = surgery.diff(base2, tmp_path / "out")
    assert found.recoded == (UP,) and not found.equal
    said = CliRunner().invoke(app, ["diff", str(base2), str(tmp_path / "out")])
    assert said.exit_code == 1 and "the same values" in said.stdout
