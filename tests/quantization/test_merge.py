"""Adapters merged into quantised bases: what the live model computes, what stays as it is, and what survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from quantization.live import HOW, Quantised, adapter, judged, logits, raw
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import surgery


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("dequantize", [False, True])
def test_what_is_touched_is_written_in_16_bits(
    quantised: Quantised, tmp_path: Path, how: str, dequantize: bool
) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj", "down_proj"])
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), dequantize=dequantize)
    surgery.write(merged, tmp_path / "out")
    before, wanted = judged(base, lora)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu"))
    assert (wanted - before).abs().max() > 20 * (found - wanted).abs().max()
    old, new = raw(base), raw(tmp_path / "out")
    layer = "model.layers.0."
    for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"):
        assert (
            len(new[f"{layer}{part}.weight"])
            == 2 * load_file(base.parent / "plain/model.safetensors")[f"{layer}{part}.weight"].numel()
        )
    kept = [n for n in old if "o_proj" in n or "gate_proj" in n or "up_proj" in n]
    assert all((old[n] == new.get(n)) is not dequantize for n in kept)
    said = json.loads((tmp_path / "out/config.json").read_text()).get("quantization_config")
    assert (said is None) is dequantize
    if said:
        assert {"lm_head", f"{layer}self_attn.k_proj"} <= set(said["llm_int8_skip_modules"])


@pytest.mark.parametrize("how", HOW)
def test_an_adapter_on_16_bits_leaves_codes_and_config_alone(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["lm_head"])
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora)), tmp_path / "out")
    old, new = raw(base), raw(tmp_path / "out")
    assert {n for n in old if old[n] != new.get(n)} == {"lm_head.weight"} and old.keys() == new.keys()
    assert (base / "config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()


@pytest.mark.parametrize("how", HOW)
def test_codes_are_made_again_and_the_report_says_what_survives(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj", "down_proj"])
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), requantize=True)
    report = surgery.write(merged, tmp_path / "out")
    old, new = raw(base), raw(tmp_path / "out")
    touched = {f"model.layers.{i}.{m}.weight" for i in (0, 1) for m in ("self_attn.q_proj", "mlp.down_proj")}
    assert {n for n in old if old[n] != new[n]} == touched
    assert (base / "config.json").read_bytes() == (tmp_path / "out/config.json").read_bytes()
    assert report.recoded and report.recoded.tensors == 4
    plain, was = (
        surgery.dequantize(surgery.open_checkpoint(tmp_path / "out")),
        surgery.dequantize(surgery.open_checkpoint(base)),
    )
    wanted = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), dequantize=True, dtype="float32")
    along = total = 0.0
    for name in touched:
        delta = (wanted.load(name).float() - was.load(name).float()).flatten()
        change = (plain.load(name).float() - was.load(name).float()).flatten()
        along, total = along + float(change @ delta), total + float(delta @ delta)
    assert abs(report.recoded.share - along / total) < 0.01


def test_a_run_that_would_erase_the_adapter_is_refused(quantised: Quantised, tmp_path: Path) -> None:
    """With what survives, and the way out; and it is no other way round that the same stage passes."""
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.004, target_modules=["q_proj", "down_proj"])
    opened = surgery.open_checkpoint(base), surgery.open_adapter(lora)
    for _ in range(2):
        with pytest.raises(surgery.VerificationFailed, match=r"0\.\d % of what was to be merged survives"):
            surgery.write(surgery.merge(*opened, requantize=True), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    report = surgery.write(surgery.merge(*opened, requantize=True, lossy=True), tmp_path / "out")
    assert report.recoded and report.recoded.share < 0.1


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"requantize": True, "dequantize": True}, "contradict"),
        ({"lossy": True}, "--requantize"),
        ({"dtype": "float16"}, "no dtype float16"),
    ],
)
def test_options_that_contradict(quantised: Quantised, tmp_path: Path, options: dict[str, Any], what: str) -> None:
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj"])
    with pytest.raises(surgery.SurgeryError, match=what):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora), **options)


def test_a_plain_base_has_nothing_to_dequantise(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["q_proj"])
    with pytest.raises(surgery.SurgeryError, match="nothing is quantised"):
        surgery.merge(surgery.open_checkpoint(base.parent / "plain"), surgery.open_adapter(lora), requantize=True)
