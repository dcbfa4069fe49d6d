"""Adapters of AdapterHub, whose own live models made the fixtures: LoRA, GPT-2's fused projection, (IA)³, VeRA."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from foreign import TOOLS, merged_with, saved_as, weights_in
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, FormatError, NotSupported

CASES = {"bert-lora": 4, "gpt2-lora": 1, "bert-ia3": 3, "bert-vera": 2}  # and how many weights each changes
CLASSES = {"bert": tf.BertForMaskedLM, "gpt2": tf.GPT2LMHeadModel}


def computed(folder: Path, case: str, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    model: Any = CLASSES[case[:4]].from_pretrained(folder).eval()
    if weights:
        model.load_state_dict(weights, strict=False)
        model.tie_weights()
    with torch.no_grad():
        return model(input_ids=torch.arange(10)[None]).logits


@pytest.mark.parametrize("case", CASES)
def test_merged_models_compute_what_adapterhubs_do(case: str, tmp_path: Path) -> None:
    fixture = TOOLS / f"adapterhub-{case}"
    live = load_file(fixture / "live.safetensors")["y"]
    merged = merged_with(fixture / "base", fixture / "adapter", tmp_path / "out")
    largest = live.abs().max()
    error = (computed(merged, case) - live).abs().max() / largest
    effect = (computed(fixture / "base", case) - live).abs().max() / largest
    assert error <= 1e-5 and effect >= 1000 * error, (float(error), float(effect))
    old, new = weights_in(fixture / "base"), weights_in(merged)
    changed = [name for name in new if name.endswith("weight") and not torch.equal(new[name], old[name])]
    assert len(changed) == CASES[case]
    for control in ({n: 2 * new[n] - old[n] for n in new}, {changed[0]: old[changed[0]]}):
        assert (computed(merged, case, {**new, **control}) - live).abs().max() > 1e-3 * largest
    proof = surgery.verify(merged, base=fixture / "base", adapter=fixture / "adapter", check_class=False)
    assert proof.ok, proof


def test_inspect_says_what_it_is_and_a_head_beside_it_is_told() -> None:
    found = surgery.inspect(TOOLS / "adapterhub-bert-lora/adapter")
    assert found.adapter["format"] == "AdapterHub" and "version adapters." in found.adapter["why"]
    assert any("pytorch_model_head.bin" in note for note in found.notes)


def test_saved_as_safetensors_it_is_the_same(tmp_path: Path) -> None:
    fixture = TOOLS / "adapterhub-gpt2-lora"
    shutil.copytree(fixture / "adapter", tmp_path / "a")
    tensors = torch.load(tmp_path / "a/pytorch_adapter.bin", weights_only=True)
    (tmp_path / "a/pytorch_adapter.bin").unlink()
    save_file(tensors, tmp_path / "a/adapter.safetensors")
    one = weights_in(merged_with(fixture / "base", tmp_path / "a", tmp_path / "one"))
    two = weights_in(merged_with(fixture / "base", fixture / "adapter", tmp_path / "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("case", ["bert-lora", "gpt2-lora", "bert-ia3"])
def test_peft_loads_what_is_converted(case: str, tmp_path: Path) -> None:
    import peft

    fixture = TOOLS / f"adapterhub-{case}"
    surgery.write(surgery.convert_adapter(surgery.open_adapter(fixture / "adapter")), tmp_path / "peft")
    base = CLASSES[case[:4]].from_pretrained(fixture / "base").eval()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(10)[None]).logits
    live = load_file(fixture / "live.safetensors")["y"]
    assert (found - live).abs().max() <= 1e-5 * live.abs().max()


NAME = "bert.encoder.layer.0.attention.self.query.{}"
CONFIG = {"config": {"r": 2, "alpha": 4, "architecture": "lora"}, "version": "adapters.1.3.0"}
PAIR = {NAME.format("loras.a.lora_A"): torch.ones(2, 12), NAME.format("loras.a.lora_B"): torch.ones(12, 2)}
REFUSED = {
    "gate": ({**PAIR, NAME.format("loras.a.gate.weight"): torch.ones(1, 12)}, CONFIG, "sigmoid of the input"),
    "DoRA": ({**PAIR, NAME.format("loras.a.m.weight"): torch.ones(12, 1)}, CONFIG, "lengths of W"),
    "bottleneck": ({NAME.format("adapters.a.adapter_down.0.weight"): torch.ones(2, 12)}, CONFIG, "nonlinearity"),
    "rank": (PAIR, {**CONFIG, "config": {"r": 4, "alpha": 4}}, "says rank 4"),
    "alpha": (PAIR, {**CONFIG, "config": {"r": 2, "alpha": "x"}}, "alpha = 'x' is no number"),
    "config": (PAIR, {"version": "adapters.1.3.0"}, "no config of AdapterHub's"),
    "half": (dict(list(PAIR.items())[:1]), CONFIG, "has no lora_B"),
    "two": ({**PAIR, NAME.format("loras.b.lora_A"): torch.ones(2, 12)}, CONFIG, "holds two adapters"),
    "integers": ({**PAIR, NAME.format("loras.a.lora_B"): torch.ones(12, 2, dtype=torch.int8)}, CONFIG, "of I8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place_in_weights_is_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, config, said = REFUSED[case]
    saved_as(tmp_path, tensors, "adapter.safetensors", config)
    with pytest.raises((AdapterError, FormatError, NotSupported), match=said):
        surgery.open_adapter(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == config
