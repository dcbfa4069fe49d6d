"""What changes names or leaves tensors out, on quantised checkpoints; and adapters that are injected for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from quantization.live import HOW, Quantised, adapter, logits
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import surgery
from surgery import PlanError

ALL = (*HOW, "fp8")
UP = r".*layers\.1\.mlp\.up_proj"


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("pattern", [UP + r"\.weight", UP + r"\.(weight\.absmax|SCB|weight_scale_inv)"])
def test_codes_are_not_left_without_companions(quantised: Quantised, how: str, pattern: str) -> None:
    base = surgery.open_checkpoint(quantised(how))
    with pytest.raises(PlanError, match="a part would go, and a part would stay") as raised:
        surgery.drop(base, pattern)
    assert "model.layers.1.mlp.up_proj" in str(raised.value)
    assert not [n for n in surgery.drop(base, UP + r"\..*").tensors if "layers.1.mlp.up_proj" in n]
    assert surgery.drop(base, "lm_head.weight").config == base.config


@pytest.mark.parametrize("how", ALL)
@pytest.mark.parametrize("end", [r"up_proj\.weight$", r"up_proj\.(weight\.absmax|SCB|weight_scale_inv)$"])
def test_codes_are_renamed_with_companions_or_not_at_all(
    quantised: Quantised, tmp_path: Path, how: str, end: str
) -> None:
    base = surgery.open_checkpoint(quantised(how))
    with pytest.raises(PlanError) as raised:
        surgery.rename(base, [(end, "other.thing")])
    assert "layers.0.mlp." in str(raised.value) and "the whole module" in str(raised.value)
    there = surgery.rename(base, [(r"\.up_proj\.", ".upper.")])
    surgery.write(surgery.rename(there, [(r"\.upper\.", ".up_proj.")]), tmp_path / "back")
    assert (tmp_path / "back/config.json").read_bytes() == (quantised(how) / "config.json").read_bytes()


def test_the_list_of_modules_in_16_bits_follows_the_names(quantised: Quantised, tmp_path: Path) -> None:
    base = quantised("nf4")
    lora = adapter(base, tmp_path / "lora", 0.05, target_modules=["down_proj"])
    mixed = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(lora))
    surgery.write(mixed, tmp_path / "mixed")
    opened = surgery.open_checkpoint(tmp_path / "mixed")
    surgery.write(surgery.rename(opened, [(r"^model\.layers\.", "model.blocks.")]), tmp_path / "out")
    said = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["llm_int8_skip_modules"]
    assert said == ["lm_head", "model.blocks.0.mlp.down_proj", "model.blocks.1.mlp.down_proj"]
    assert len(surgery.rename(opened, [(r"^model\.layers\.(\d+)\.mlp\.down_proj\.", r"down_\1.")]).tensors) == len(
        opened.tensors
    )
    config = dict(opened.config)
    said = {**config["quantization_config"], "llm_int8_skip_modules": ["lm_head", "down_proj"]}
    by_end = opened.with_config({**config, "quantization_config": said})
    with pytest.raises(PlanError, match="2 renamed modules") as raised:
        surgery.rename(by_end, [(r"layers\.(\d)\.mlp\.down_proj\.", r"layers.\1.mlp.lower.")])
    assert "model.layers.0.mlp.down_proj -> model.layers.0.mlp.lower" in str(raised.value)


@pytest.mark.parametrize("how", HOW)
def test_an_adapter_for_qlora_is_the_one_that_peft_makes(quantised: Quantised, tmp_path: Path, how: str) -> None:
    base = quantised(how)
    injected = surgery.inject(surgery.open_checkpoint(base), "all-linear", rank=4)
    surgery.write(injected, tmp_path / "lora")
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu")
    before = logits(live)
    mine = PeftModel.from_pretrained(live, tmp_path / "lora")
    assert torch.allclose(logits(mine), before, atol=0.02)
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, device_map="cpu"), LoraConfig(r=4, target_modules="all-linear")
    )
    shapes = {n: tuple(t.shape) for n, t in get_peft_model_state_dict(theirs).items()}
    assert {n: t.shape for n, t in injected.tensors.items()} == shapes


def test_what_an_adapter_takes_along_is_what_codes_mean(quantised: Quantised, tmp_path: Path) -> None:
    base = surgery.open_checkpoint(quantised("nf4"))
    surgery.write(
        surgery.inject(base, ["q_proj"], rank=4, use_dora=True, modules_to_save=["o_proj"]), tmp_path / "lora"
    )
    plain = surgery.dequantize(base)
    name = "model.layers.1.self_attn.{}_proj"
    norms = plain.load(f"{name.format('q')}.weight").float().norm(dim=1)
    prefix = "base_model.model."
    held = {n.removeprefix(prefix): t for n, t in load_file(tmp_path / "lora/adapter_model.safetensors").items()}
    assert torch.allclose(held[f"{name.format('q')}.lora_magnitude_vector"], norms, rtol=3e-3)
    assert torch.equal(held[f"{name.format('o')}.weight"], plain.load(f"{name.format('o')}.weight"))
