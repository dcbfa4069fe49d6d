"""Adapters merged into quantised bases: what the live model computes, what stays as it is, and what survives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from quantization.live import HOW, Quantised, adapter, judged, logits, raw
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

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


KINDS: dict[str, dict[str, Any]] = {
    "dora": {"target_modules": ["q_proj", "down_proj"], "use_dora": True},
    "all linear, rslora": {"target_modules": "all-linear", "use_rslora": True},
    "saved head": {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
    "embedding": {"target_modules": ["embed_tokens", "up_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("requantize", [False, True])
def test_kinds_of_adapters(quantised: Quantised, tmp_path: Path, kind: str, requantize: bool) -> None:
    """As on plain bases; coded again, what comes out is nearer to it than the base is."""
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, **KINDS[kind])
    merged = surgery.merge(
        surgery.open_checkpoint(base), surgery.open_adapter(lora), requantize=requantize, lossy=requantize
    )
    surgery.write(merged, tmp_path / "out")
    before, wanted = judged(base, lora)
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu"))
    assert (wanted - before).abs().max() > (1.5 if requantize else 20) * (found - wanted).abs().max()


def test_several_adapters_at_weights(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("nf4")
    loras = [adapter(base, tmp_path / "a", 0.05, target_modules=["q_proj"])]
    loras += [adapter(base, tmp_path / "b", 0.03, target_modules=["q_proj", "gate_proj"])]
    opened = [surgery.open_adapter(lora) for lora in loras]
    surgery.write(surgery.merge(surgery.open_checkpoint(base), opened, [0.5, 2.0]), tmp_path / "out")
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu").dequantize().float()
    before = logits(live)
    live = PeftModel.from_pretrained(live, loras[0], adapter_name="a")
    live.load_adapter(loras[1], adapter_name="b")
    live.add_weighted_adapter(["a", "b"], [0.5, 2.0], "both", combination_type="cat")
    live.set_adapter("both")
    wanted, found = logits(live), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu"))
    assert (wanted - before).abs().max() > 20 * (found - wanted).abs().max()


def test_a_classifier_on_a_quantised_body(quantised: Quantised, tmp_path: Path) -> None:
    """The head is new, and in 16 bits: config.json says so, else loaders would expect its codes."""
    base = quantised("nf4")
    torch.manual_seed(2)
    options = {"num_labels": 3, "pad_token_id": 0}
    live = AutoModelForSequenceClassification.from_pretrained(base.parent / "plain", **options)
    live = get_peft_model(live, LoraConfig(task_type="SEQ_CLS", r=4, lora_alpha=16, target_modules=["q_proj"]))
    for name, value in live.named_parameters():
        if "lora_" in name or "score" in name:
            torch.nn.init.normal_(value, std=0.05)
    live.save_pretrained(tmp_path / "lora")
    surgery.write(
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "lora")), tmp_path / "out"
    )
    plain = surgery.dequantize(surgery.open_checkpoint(base))
    surgery.write(plain, tmp_path / "plain")
    wide = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain", dtype=torch.float32, **options)
    wanted = logits(PeftModel.from_pretrained(wide, tmp_path / "lora"))
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", device_map="cpu", pad_token_id=0)
    assert type(found.score) is torch.nn.Linear
    assert (logits(found) - wanted).abs().max() < 0.05 * wanted.abs().max()
