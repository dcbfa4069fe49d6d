"""Kinds that are exactly low-rank, as LoRA: what PEFT computes with the one, it computes with the other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

import surgery
from surgery.errors import NotSupported

TARGETS = ["q_proj", "down_proj"]
KINDS: Mapping[str, tuple[str, Any, int | None]] = {  # and the rank that it comes to
    "LoHa": ("llama", peft.LoHaConfig(r=3, alpha=5, target_modules=TARGETS), 9),
    "LoHa with patterns": (
        "llama",
        peft.LoHaConfig(r=3, alpha=5, rank_pattern={"q_proj": 2}, alpha_pattern={"q_proj": 7}, target_modules=TARGETS),
        None,
    ),
    "GraLoRA": ("llama", peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=["q_proj"]), 8),
    "GraLoRA, hybrid": (
        "llama",
        peft.GraloraConfig(r=4, hybrid_r=2, alpha=6, gralora_k=2, target_modules=["q_proj"]),
        10,
    ),
    "VB-LoRA": (
        "llama",
        peft.VBLoRAConfig(r=2, num_vectors=12, vector_length=4, topk=2, target_modules=["q_proj", "v_proj"]),
        2,
    ),
    "Uni-LoRA": (
        "llama",
        peft.UniLoraConfig(r=2, theta_d_length=40, save_indices=True, target_modules=["q_proj", "v_proj"]),
        2,
    ),
    "TinyLoRA": ("llama", peft.TinyLoraConfig(r=2, u=4, weight_tying=1.0, target_modules=["q_proj", "v_proj"]), 2),
    "GraLoRA on Conv1D": ("gpt2", peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=["c_fc"]), 8),
}


def made(name: str, tmp_path: Path) -> tuple[str, Path, torch.Tensor]:
    """The base and the adapter as they are saved, and what PEFT computes with them."""
    family, config, _ = KINDS[name]
    tiny_models.build(family).save_pretrained(tmp_path / "base")
    torch.manual_seed(5)
    model = peft.get_peft_model(tiny_models.build(family), config)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=0.4)
    model.eval().save_pretrained(tmp_path / "kind")
    return family, tmp_path / "kind", tiny_models.output(model, family)


@pytest.mark.parametrize("name", KINDS)
def test_pefts_lora_computes_the_same(name: str, tmp_path: Path) -> None:
    family, path, live = made(name, tmp_path)
    lora = surgery.resize_adapter(surgery.open_adapter(path), rank=10_000)
    surgery.write(lora, tmp_path / "lora")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    assert config["peft_type"] == "LORA" and KINDS[name][2] in (None, config["r"])
    found = tiny_models.output(
        peft.PeftModel.from_pretrained(tiny_models.build(family), tmp_path / "lora").eval(), family
    )
    plain = tiny_models.output(tiny_models.build(family), family)
    error, effect = (found - live).abs().max(), (plain - live).abs().max()
    assert error <= 1e-5 * live.abs().max() and effect >= 1000 * error, (float(error), float(effect))
    base = surgery.open_checkpoint(tmp_path / "base")
    one, other = (surgery.merge(base, surgery.open_adapter(p)) for p in (path, tmp_path / "lora"))
    assert all(torch.allclose(one.load(n), other.load(n), atol=1e-5) for n in one.tensors)


@pytest.mark.parametrize("name", ["LoHa", "VB-LoRA", "TinyLoRA"])
def test_a_sum_with_lora_is_the_sum_of_the_merges(name: str, tmp_path: Path) -> None:
    _, path, _ = made(name, tmp_path)
    torch.manual_seed(6)
    other = peft.get_peft_model(tiny_models.build("llama"), peft.LoraConfig(r=4, target_modules=["q_proj", "o_proj"]))
    for key, parameter in other.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.4)
    other.save_pretrained(tmp_path / "other")
    both = [surgery.open_adapter(path), surgery.open_adapter(tmp_path / "other")]
    surgery.write(surgery.combine(both, [0.7, -0.3]), tmp_path / "sum")
    base = surgery.open_checkpoint(tmp_path / "base")
    wanted = surgery.merge(base, both, [0.7, -0.3])
    found = surgery.merge(base, surgery.open_adapter(tmp_path / "sum"))
    changed = 0
    for key in wanted.tensors:
        assert torch.allclose(found.load(key), wanted.load(key), atol=1e-5), key
        changed += not torch.equal(wanted.load(key), base.load(key))
    assert changed >= 9


def test_of_a_rank_it_is_the_best(tmp_path: Path) -> None:
    _, path, _ = made("LoHa", tmp_path)
    tensors = load_file(path / "adapter_model.safetensors")
    at = "base_model.model.model.layers.0.self_attn.q_proj.hada_w"
    w1, w2 = (tensors[f"{at}{i}_a"].double() @ tensors[f"{at}{i}_b"].double() for i in "12")
    u, s, v = torch.linalg.svd(5 / 3 * w1 * w2, full_matrices=False)
    surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=3), tmp_path / "small")
    small = load_file(tmp_path / "small/adapter_model.safetensors")
    at = at.replace("hada_w", "lora_")
    delta = small[f"{at}B.weight"].double() @ small[f"{at}A.weight"].double()
    assert (delta - (u[:, :3] * s[:3]) @ v[:3]).norm() <= 1e-5 * delta.norm()


OTHERS: Mapping[str, Any] = {
    "VERA": peft.VeraConfig(r=4, target_modules=["q_proj"]),
    "MISS": peft.MissConfig(r=4, target_modules=["q_proj"]),
    "LOKR": peft.LoKrConfig(r=4, target_modules=["q_proj"]),
    "IA3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_are_refused_with_the_way(kind: str, tmp_path: Path) -> None:
    peft.get_peft_model(tiny_models.build("llama"), OTHERS[kind]).save_pretrained(tmp_path / "a")
    adapter = surgery.open_adapter(tmp_path / "a")
    for refused in (lambda: surgery.combine([adapter]), lambda: surgery.resize_adapter(adapter, rank=2)):
        with pytest.raises(NotSupported, match=f"kind {kind} is no product of two thin matrices") as caught:
            refused()
        assert "surgery extract" in str(caught.value)
