"""PEFT's own merge into codes, beside surgery's: how many codes are others, and which is nearer to what was merged.

PEFT makes scales anew, and surgery keeps those that are stored; so codes are not the same by design.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from quantization.live import Quantised, adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import surgery

pytestmark = pytest.mark.slow
TOUCHED = [f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")]


def by_peft(base: Path, lora: Path, out: Path) -> Path:
    """Its merge into the quantised model, live, as it is stored then."""
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    made = PeftModel.from_pretrained(live, lora).merge_and_unload().state_dict()
    out.mkdir()
    save_file({n: t.contiguous() for n, t in made.items()}, out / "model.safetensors", {"format": "pt"})
    (out / "config.json").write_bytes((base / "config.json").read_bytes())
    return out


def codes(folder: Path, name: str) -> torch.Tensor:
    """One by one: two to a byte where they have 4 bits."""
    stored = load_file(folder / "model.safetensors")
    raw = stored[name].view(torch.uint8).flatten()
    return torch.stack((raw >> 4, raw & 15), 1).flatten() if f"{name}.absmax" in stored else raw


def differing(one: Path, other: Path) -> float:
    """The share of codes of touched weights that are not the same."""
    return float(torch.cat([codes(one, n) != codes(other, n) for n in TOUCHED]).float().mean())


def away(folder: Path, base: Path, lora: Path) -> float:
    """How far touched weights are from what was merged, as a share of the delta."""
    opened = surgery.open_checkpoint(base)
    wanted = surgery.merge(opened, surgery.open_adapter(lora), dequantize=True, dtype="float32")
    was, now = (surgery.dequantize(surgery.open_checkpoint(path), dtype="float32") for path in (base, folder))
    full, before, after = (torch.cat([made.load(n).flatten() for n in TOUCHED]) for made in (wanted, was, now))
    return float((after - full).norm() / (full - before).norm())


@pytest.mark.parametrize(
    ("how", "spread", "least", "most"),
    [
        ("nf4", 0.004, 0.0, 0.001),
        ("nf4", 0.02, 0.10, 0.14),
        ("nf4", 0.05, 0.55, 0.65),
        ("int8", 0.004, 0.02, 0.06),
        ("int8", 0.02, 0.54, 0.65),
        ("int8", 0.05, 0.88, 0.96),
    ],
)
def test_codes_again_under_stored_scales_and_under_new_ones(
    quantised: Quantised, tmp_path: Path, how: str, spread: float, least: float, most: float
) -> None:
    """Where the delta is small, kept scales are not worse; where it is large, PEFT's are better, since weights go
    beyond the stored ones."""
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", spread, target_modules=["q_proj", "down_proj"])
    peft = by_peft(base, lora, tmp_path / "peft")
    made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), requantize=True, lossy=True)
    surgery.write(made, tmp_path / "out")
    share = differing(tmp_path / "out", peft)
    assert least <= share <= most
    mine, theirs = (away(folder, base, lora) for folder in (tmp_path / "out", peft))
    assert mine < 1.01 * theirs if spread < 0.01 else mine < 1.0
    assert theirs < 0.7 * mine if spread > 0.03 else theirs < 1.2


@pytest.mark.parametrize("spread", [0.004, 0.05])
def test_merged_in_16_bits_and_quantised_anew_it_is_nearly_what_peft_makes(
    quantised: Quantised, tmp_path: Path, spread: float
) -> None:
    """But for roundings before: PEFT adds what codes mean in 16 bits and the delta in 16 bits."""
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", spread, target_modules=["q_proj", "down_proj"])
    peft = by_peft(base, lora, tmp_path / "peft")
    whole = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), dequantize=True)
    surgery.write(whole, tmp_path / "whole")
    surgery.write(surgery.quantize(surgery.open_checkpoint(tmp_path / "whole"), "nf4-double"), tmp_path / "out")
    share = differing(tmp_path / "out", peft)
    assert share < (0.001 if spread < 0.01 else 0.01)
    assert away(tmp_path / "out", base, lora) < 1.05 * away(peft, base, lora)
