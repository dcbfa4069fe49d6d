"""Adapters of AdapterHub, whose own live models made the fixtures: LoRA, GPT-2's fused projection, (IA)³, VeRA, DoRA,
MTL-LoRA.
"""

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

CASES = {
    "bert-lora": 4,
    "gpt2-lora": 1,
    "bert-ia3": 3,
    "bert-vera": 2,
    "bert-dora": 4,
    "bert-mtl": 4,
}  # and how many weights each changes
CLASSES = {"bert": tf.BertForMaskedLM, "gpt2": tf.GPT2LMHeadModel}


def base_of(case: str) -> Path:
    own = TOOLS / f"adapterhub-{case}/base"
    return own if own.exists() else TOOLS / "adapterhub-bert-lora/base"


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
    base = base_of(case)
    merged = merged_with(base, fixture / "adapter", tmp_path / "out")
    largest = live.abs().max()
    error = (computed(merged, case) - live).abs().max() / largest
    effect = (computed(base, case) - live).abs().max() / largest
    assert error <= 1e-5 and effect >= 1000 * error, (float(error), float(effect))
    old, new = weights_in(base), weights_in(merged)
    changed = [name for name in new if name.endswith("weight") and not torch.equal(new[name], old[name])]
    assert len(changed) == CASES[case]
    for control in ({n: 2 * new[n] - old[n] for n in new}, {changed[0]: old[changed[0]]}):
        assert (computed(merged, case, {**new, **control}) - live).abs().max() > 1e-3 * largest
    proof = surgery.verify(merged, base=base, adapter=fixture / "adapter", check_class=False)
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


def test_dora_comes_off_by_hash_and_only_with_weight_1(tmp_path: Path) -> None:
    base, adapter = base_of("bert-dora"), surgery.open_adapter(TOOLS / "adapterhub-bert-dora/adapter")
    start = surgery.open_checkpoint(base)
    surgery.write(surgery.reversible(surgery.merge(start, adapter), start), tmp_path / "m")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "m")), tmp_path / "back")
    old, back = weights_in(base), weights_in(tmp_path / "back")
    assert all(torch.equal(old[name], back[name]) for name in old)
    with pytest.raises(NotSupported, match="only be merged with weight 1"):
        surgery.merge(surgery.open_checkpoint(base), adapter, scale=0.5)
    with pytest.raises(NotSupported, match="no product of two thin matrices"):
        surgery.convert_adapter(adapter)


def test_dora_of_its_own_is_not_pefts(tmp_path: Path) -> None:
    """Read as PEFT's, lengths would be of W + s B A, and biases stay: another model."""
    fixture, base = TOOLS / "adapterhub-bert-dora", base_of("bert-dora")
    tensors = torch.load(fixture / "adapter/pytorch_adapter.bin", weights_only=True)
    saved = {
        f"base_model.model.{name}".replace("loras.mine.", "").replace("m.weight", "lora_magnitude_vector"): (
            one.flatten() if name.endswith("m.weight") else one
        )
        for name, one in tensors.items()
    }
    saved = {f"{name}.weight" if name.endswith(("lora_A", "lora_B")) else name: one for name, one in saved.items()}
    targets = ["query", "value", "intermediate.dense", "output.dense"]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "use_dora": True, "target_modules": targets}
    saved_as(tmp_path / "peft", saved, "adapter_model.safetensors", config)
    out = merged_with(base, tmp_path / "peft", tmp_path / "out")
    live = load_file(fixture / "live.safetensors")["y"]
    assert (computed(out, "bert-dora") - live).abs().max() > 0.05 * live.abs().max()


def test_a_converted_mtl_lora_is_loaded_by_peft(tmp_path: Path) -> None:
    import peft

    fixture = TOOLS / "adapterhub-bert-mtl"
    surgery.write(surgery.convert_adapter(surgery.open_adapter(fixture / "adapter")), tmp_path / "peft")
    base = CLASSES["bert"].from_pretrained(base_of("bert-mtl")).eval()
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        found = model(input_ids=torch.arange(10)[None]).logits
    live = load_file(fixture / "live.safetensors")["y"]
    assert (found - live).abs().max() <= 1e-5 * live.abs().max()


def test_bottlenecks_are_listed_and_not_merged(tmp_path: Path) -> None:
    folder = TOOLS / "adapterhub-bert-bottleneck/adapter"
    found = surgery.inspect(folder)
    assert found.adapter["peft_type"] == "AdapterHub bottleneck" and found.adapter["modules"] == 2
    assert found.adapter["format"] == "AdapterHub"
    with pytest.raises(
        NotSupported, match="bottlenecks, compacters: a nonlinearity lies between down and up"
    ) as caught:
        merged_with(base_of("bert-lora"), folder, tmp_path / "out")
    assert "serve it live, with AdapterHub" in str(caught.value) and not (tmp_path / "out").exists()
    for refused in (
        surgery.convert_adapter,
        lambda one: surgery.combine([one]),
        lambda one: surgery.resize_adapter(one, rank=1),
    ):
        with pytest.raises(NotSupported, match="AdapterHub bottleneck"):
            refused(surgery.open_adapter(folder))


NAME = "bert.encoder.layer.0.attention.self.query.{}"
CONFIG = {"config": {"r": 2, "alpha": 4, "architecture": "lora"}, "version": "adapters.1.3.0"}
PAIR = {NAME.format("loras.a.lora_A"): torch.ones(2, 12), NAME.format("loras.a.lora_B"): torch.ones(12, 2)}
FUSION = {"bert.encoder.layer.0.output.adapter_fusion_layer.a,b.query.weight": torch.ones(2, 2)}
LISTED = {
    "gate": ({**PAIR, NAME.format("loras.a.gate.weight"): torch.ones(1, 12)}, CONFIG, "sigmoid of the input"),
    "bottleneck": ({NAME.format("adapters.a.adapter_down.0.weight"): torch.ones(2, 12)}, CONFIG, "nonlinearity"),
    "compacter": (
        {
            NAME.format("adapters.a.adapter_down.0.W_left"): torch.ones(2, 6, 1),
            "bert.shared_parameters.a.phm_rule": torch.ones(2, 2, 2),
        },
        CONFIG,
        "nonlinearity",
    ),
    "prefix": ({"bert.prefix_tuning.prefix_tunings.a.self_prefix.wte.weight": torch.ones(2, 12)}, CONFIG, "states"),
    "prompt": ({"bert.prompt_tuning.prompt_tunings.a.prompt_embedding.weight": torch.ones(2, 12)}, CONFIG, "states"),
    "reft": ({NAME.format("reft_layer.refts.a.units.0.learned_source.bias"): torch.ones(2)}, CONFIG, "positions"),
    "union": (
        {**PAIR, NAME.format("prefix_tuning.pool.prefix_tunings.a.x.weight"): torch.ones(2, 1)},
        CONFIG,
        "states",
    ),
    "fusion": (FUSION, None, "attention over what adapters"),
}


@pytest.mark.parametrize("case", LISTED)
def test_what_has_no_place_in_weights_is_listed_and_refused_by_name(case: str, tmp_path: Path) -> None:
    tensors, config, said = LISTED[case]
    saved_as(tmp_path / "a", tensors, "adapter.safetensors", config)
    found = surgery.inspect(tmp_path / "a")
    assert found.kind == "adapter" and found.adapter["peft_type"].startswith("AdapterHub ")
    with pytest.raises(NotSupported, match=said):
        merged_with(base_of("bert-lora"), tmp_path / "a", tmp_path / "out")


@pytest.mark.parametrize("name", ["prefix-run", "gate", "reft", "prompt"])
def test_the_adapters_own_name_is_none_of_its_parts(name: str, tmp_path: Path) -> None:
    tensors = {key.replace("loras.a.", f"loras.{name}."): one for key, one in PAIR.items()}
    saved_as(tmp_path / "a", tensors, "adapter.safetensors", CONFIG)
    out = merged_with(base_of("bert-lora"), tmp_path / "a", tmp_path / "out")
    old, new = weights_in(base_of("bert-lora")), weights_in(out)
    delta = new[f"{NAME.format('weight')}"] - old[NAME.format("weight")]
    assert torch.allclose(delta, torch.full((12, 12), 4.0), atol=1e-5)


MTL = {
    NAME.format(f"loras.a.{part}"): one
    for part, one in {
        "lora_A": torch.ones(2, 12),
        "lora_B": torch.ones(3, 12, 2),
        "weights": torch.ones(3),
        "task_specific.values": torch.ones(2),
    }.items()
}
SHARP = {
    "config": {"r": 2, "alpha": 4, "architecture": "mtl_lora", "weights_sharpness": 0.5},
    "version": "adapters.1.3.0",
}
DORA = {**PAIR, NAME.format("loras.a.m.weight"): torch.ones(12, 1)}
REFUSED = {
    "DoRA": (DORA, CONFIG, "1 of 1 modules have DoRA's m.weight, and use_dora is null"),
    "no DoRA": (PAIR, {**CONFIG, "config": {"r": 2, "alpha": 4, "use_dora": True}}, "0 of 1 modules have DoRA's"),
    "weights": ({**MTL, NAME.format("loras.a.weights"): torch.ones(2)}, SHARP, "lora_B \\(n, out, r\\), n weights"),
    "sharpness": (MTL, CONFIG, "weights_sharpness = None"),
    "part": ({**PAIR, NAME.format("loras.a.odd"): torch.ones(1)}, CONFIG, "LoRA with odd is not read"),
    "shared": ({**PAIR, "bert.shared_parameters.a.lora_A": torch.ones(2, 12)}, CONFIG, "none of AdapterHub's"),
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
