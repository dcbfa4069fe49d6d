"""DoRA merged: what the merged checkpoint computes is what PEFT's live model does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotSupported, PlanError
from surgery.evaluation.evaluate import load
from surgery.lazy.tensor import F32, Norms, Sum

Saved = Callable[..., Path]


def trained(family: str, folder: Path, **options: Any) -> torch.nn.Module:
    """A live DoRA model with random B and magnitudes, saved as an adapter."""
    torch.manual_seed(5)
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "use_dora": True, **options})
    live = peft.get_peft_model(tiny_models.build(family), config).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_B" in name or "lora_embedding_A" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.2)
            elif "lora_magnitude" in name:
                parameter.mul_(0.5 + torch.rand_like(parameter))
    live.save_pretrained(folder)
    return live


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj", "down_proj"]}),
    "llama patterns": (
        "llama",
        {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 3}, "use_rslora": True},
    ),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "gpt2 square": ("gpt2", {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}),
    "bert": ("bert", {"target_modules": ["query", "dense"]}),
    "phi3 fused": ("phi3", {"target_modules": ["qkv_proj"]}),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value"]}),
    "embeddings": ("llama", {"target_modules": ["embed_tokens"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_live_model_does(case: str, saved: Saved, tmp_path: Path) -> None:
    family, options = CASES[case]
    live = tiny_models.output(trained(family, tmp_path / "adapter", **options), family)
    base = surgery.open_checkpoint(saved(family, shard="20KB"))
    surgery.write(surgery.merge(base, surgery.open_adapter(tmp_path / "adapter")), tmp_path / "merged")
    before = tiny_models.output(tiny_models.build(family), family)
    merged = tiny_models.output(type(tiny_models.build(family)).from_pretrained(tmp_path / "merged").eval(), family)
    effect = (live - before).abs().max()
    assert effect > 1e-2 * live.abs().max()
    assert (merged - live).abs().max() < 1e-3 * effect


@pytest.mark.parametrize("change", ["magnitudes as norms", "no deltas", "one layer"])
def test_a_wrong_merge_fails_the_same_comparison(change: str, saved: Saved, tmp_path: Path) -> None:
    live = tiny_models.output(trained("llama", tmp_path / "adapter", target_modules=["q_proj", "v_proj"]), "llama")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name in list(tensors):
        if change == "magnitudes as norms" and "magnitude" in name:
            tensors[name] = torch.ones_like(tensors[name])
        if (change == "no deltas" or (change == "one layer" and ".1." in name)) and "lora_B" in name:
            tensors[name] = torch.zeros_like(tensors[name])
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    merged = surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(tmp_path / "adapter"))
    surgery.write(merged, tmp_path / "merged")
    wrong = tiny_models.output(type(tiny_models.build("llama")).from_pretrained(tmp_path / "merged").eval(), "llama")
    effect = (live - tiny_models.output(tiny_models.build("llama"), "llama")).abs().max()
    assert (wrong - live).abs().max() > 1e-2 * effect


def test_bytes_depend_on_nothing_else(saved: Saved, tmp_path: Path) -> None:
    """Workers, memory, and whether it is split before or after."""
    trained("phi3", tmp_path / "adapter", target_modules=["qkv_proj", "gate_up_proj"])
    adapter, base = surgery.open_adapter(tmp_path / "adapter"), surgery.open_checkpoint(saved("phi3"))
    merged = surgery.merge(base, adapter)
    for name, options in {"a": {"workers": 1}, "b": {"workers": 2, "memory": "64MB"}}.items():
        surgery.write(merged, tmp_path / name, **options)  # type: ignore[arg-type]
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    surgery.write(surgery.merge(surgery.split(base), adapter), tmp_path / "split first")
    surgery.write(surgery.split(merged), tmp_path / "merged first")
    assert hashes(tmp_path / "split first") == hashes(tmp_path / "merged first")
    surgery.write(surgery.fuse(surgery.open_checkpoint(tmp_path / "split first")), tmp_path / "fused")
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "a")


@pytest.mark.parametrize("columns", [False, True])
def test_norms_are_torchs(columns: bool, saved: Saved) -> None:
    base = surgery.open_checkpoint(saved("llama"))
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        norms = load(Norms(Sum(F32, base[name], ()), columns))
        exact = torch.linalg.norm(base.load(name).double(), dim=0 if columns else 1)
        assert (norms - exact).abs().max() < 1e-6 * exact.max()


# Refusals


def edited(
    source: Path, folder: Path, *, config: dict[str, Any] | None = None, drop: str = "", resize: str = ""
) -> surgery.Adapter:
    folder.mkdir()
    tensors = {n: t for n, t in load_file(source / "adapter_model.safetensors").items() if not drop or drop not in n}
    tensors = {n: t[:-1].contiguous() if resize and resize in n else t for n, t in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    before = json.loads((source / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(before | (config or {})))
    return surgery.open_adapter(folder)


def test_refusals(saved: Saved, tmp_path: Path) -> None:
    trained("llama", tmp_path / "adapter", target_modules=["q_proj"])
    base, adapter = surgery.open_checkpoint(saved("llama")), surgery.open_adapter(tmp_path / "adapter")
    with pytest.raises(NotSupported, match="a DoRA adapter can only be merged with weight 1"):
        surgery.merge(base, adapter, [0.5])
    with pytest.raises(PlanError, match="a DoRA adapter scales a tensor that another one adds to"):
        surgery.merge(base, [adapter, edited(tmp_path / "adapter", tmp_path / "again")])
    with pytest.raises(AdapterError, match="says use_dora, but the module has no lora_magnitude_vector"):
        surgery.merge(base, edited(tmp_path / "adapter", tmp_path / "bare", drop="magnitude"))
    with pytest.raises(AdapterError, match="does not say use_dora, but the module has one"):
        surgery.merge(base, edited(tmp_path / "adapter", tmp_path / "unsaid", config={"use_dora": False}))
    with pytest.raises(AdapterError, match=r"F32 magnitudes \(39,\) do not fit the base's \(40, 48\)"):
        surgery.merge(base, edited(tmp_path / "adapter", tmp_path / "short", resize="magnitude"))
