"""Reversible merges into quantised bases: they come back byte for byte, and the record is as small as what changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from quantization.live import HOW, Quantised, adapter, raw
from safetensors.torch import load_file, save_file

import surgery

WAYS = {"mixed": {}, "dequantize": {"dequantize": True}, "requantize": {"requantize": True, "lossy": True}}
ALL = (*HOW, "fp8")


def merged_and_back(base: Path, lora: Path, tmp_path: Path, **way: Any) -> surgery.Report:
    """What the merge's report says; the base is given back in `back`."""
    opened = surgery.open_checkpoint(base)
    merged = surgery.merge(opened, surgery.open_adapter(lora), **way)
    report = surgery.write(surgery.reversible(merged, opened), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    return report


def corrections(out: Path) -> int:
    """The bytes that the record keeps of the base's tensors."""
    records = [load_file(path) for path in (out / ".surgery/undo").glob("*.undo")]
    return sum(tensor.nbytes for one in records for name, tensor in one.items() if name.endswith(".frames"))


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("way", WAYS)
def test_the_base_comes_back_byte_for_byte(quantised: Quantised, tmp_path: Path, how: str, way: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj", "down_proj"])
    report = merged_and_back(base, lora, tmp_path, **WAYS[way])
    before, after = hashes(base), hashes(tmp_path / "back")
    assert {n: h for n, h in after.items() if not n.startswith(".surgery")} == before
    said = next(note for note in report.notes if note.startswith("undo record: "))
    assert int(said.split()[2]) == sum(p.stat().st_size for p in (tmp_path / "out/.surgery").rglob("*.undo"))


@pytest.mark.parametrize("how", ALL)
def test_codes_that_do_not_change_cost_the_record_nothing(quantised: Quantised, tmp_path: Path, how: str) -> None:
    """The record of a small delta is a small part of the codes that it touches."""
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.002, target_modules=["q_proj", "down_proj", "up_proj", "gate_proj"])
    merged_and_back(base, lora, tmp_path, requantize=True, lossy=True)
    old, new = raw(base), raw(tmp_path / "out")
    touched = [
        n for n in old if n.endswith(("q_proj.weight", "down_proj.weight", "up_proj.weight", "gate_proj.weight"))
    ]
    moved = sum(a != b for n in touched for a, b in zip(old[n], new[n], strict=True))
    assert corrections(tmp_path / "out") <= 4 * moved + 64 * len(touched)
    assert moved < 0.05 * sum(len(old[n]) for n in touched)
    assert raw(tmp_path / "back") == old


@pytest.mark.parametrize("how", ALL)
def test_a_record_that_does_not_fit_the_codes_is_told(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.002, target_modules=["q_proj"])
    merged_and_back(base, lora, tmp_path, **WAYS["requantize"])
    assert surgery.verify(tmp_path / "out", check_class=False, check_all=True).ok
    path = sorted((tmp_path / "out").glob("*.safetensors"))[-1]
    tensors = load_file(path)
    tensors["model.layers.1.self_attn.q_proj.weight"].view(torch.uint8)[0, 0] ^= 0x3F
    save_file(tensors, path, {"format": "pt"})
    found = surgery.verify(tmp_path / "out", check_class=False, check_all=True)
    assert [c.name for c in found.checks if c.ok is False] == ["undo record"]
    assert "layers.1.self_attn.q_proj.weight" in str(found.checks)
