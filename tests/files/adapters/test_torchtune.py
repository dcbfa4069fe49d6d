"""Adapters of torchtune: base and adapter through its own converter's rule, written down anew, agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import merged_with, saved_as
from safetensors.torch import load_file

import surgery
from surgery.errors import AdapterError, NotSupported

Saved = Callable[..., Path]
NAMES = {"q_proj": "attn.q_proj", "k_proj": "attn.k_proj", "o_proj": "attn.output_proj", "up_proj": "mlp.w3"}
HEADS = {"q_proj": 4, "k_proj": 2}


def to_hf(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """torchtune's `_permute_lora_matrix`, and its `_permute` of a base's weight."""
    dim = rows.shape[0] // heads
    return rows.view(heads, dim // 2, 2, -1).transpose(1, 2).reshape(rows.shape)


def to_tune(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The other way round."""
    dim = rows.shape[0] // heads
    return rows.view(heads, 2, dim // 2, -1).transpose(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("dora", [False, True])
def test_base_and_adapter_through_its_converter_agree(dora: bool, saved: Saved, tmp_path: Path) -> None:
    """In torchtune's order W + s B A, with DoRA's lengths, then its rule for a base's weights."""
    base, tensors, wanted = load_file(saved("llama") / "model.safetensors"), {}, {}
    generator = torch.Generator().manual_seed(2)
    for layer in range(3):
        for leaf, name in NAMES.items():
            key = next(k for k in base if k.startswith(f"model.layers.{layer}.") and k.endswith(f"{leaf}.weight"))
            heads = HEADS.get(leaf)
            weight = to_tune(base[key], heads) if heads else base[key]
            a = torch.randn(4, weight.shape[1], generator=generator)
            b = torch.randn(weight.shape[0], 4, generator=generator)
            made = weight + 2.0 * b @ a
            tensors |= {f"layers.{layer}.{name}.lora_a.weight": a, f"layers.{layer}.{name}.lora_b.weight": b}
            if dora:
                m = torch.rand(weight.shape[0], generator=generator) + 0.5
                tensors[f"layers.{layer}.{name}.magnitude"] = m
                made = m[:, None] * made / made.norm(dim=1, keepdim=True)
            wanted[key] = to_hf(made, heads) if heads else made
    saved_as(tmp_path / "a", tensors, "adapter.safetensors", {"r": 4, "lora_alpha": 8})
    out = merged_with(saved("llama"), tmp_path / "a", tmp_path / "out")
    merged = load_file(out / "model.safetensors")
    for key, right in wanted.items():
        assert (merged[key] - right).abs().max() <= 1e-5 * right.abs().max(), key
        assert (base[key] - right).abs().max() > 1e-2 * right.abs().max()
    assert all(torch.equal(merged[key], base[key]) for key in base.keys() - wanted.keys())
    proof = surgery.verify(out, base=saved("llama"), adapter=tmp_path / "a", check_class=False)
    assert proof.ok


def test_rows_in_its_order_are_not_hfs(saved: Saved, tmp_path: Path) -> None:
    """The control: under HF's names as they lie, q is another one."""
    a, b = torch.randn(4, 48), torch.randn(40, 4)
    name = "layers.0.attn.q_proj"
    tensors = {f"{name}.lora_a.weight": a, f"{name}.lora_b.weight": b}
    file = saved_as(tmp_path / "a", tensors, "adapter.safetensors")
    merged = load_file(merged_with(saved("llama"), file, tmp_path / "out", alpha=4) / "model.safetensors")
    base = load_file(saved("llama") / "model.safetensors")
    key = "model.layers.0.self_attn.q_proj.weight"
    assert (merged[key] - base[key] - b @ a).abs().max() > 0.1
    assert torch.allclose(merged[key], base[key] + to_hf(b, 4) @ a, atol=1e-5)


def test_other_model_types_are_refused_by_name(saved: Saved, tmp_path: Path) -> None:
    tensors = {
        "layers.0.attn.q_proj.lora_a.weight": torch.ones(4, 48),
        "layers.0.attn.q_proj.lora_b.weight": torch.ones(48, 4),
    }
    file = saved_as(tmp_path, tensors, "adapter.safetensors")
    with pytest.raises(NotSupported, match="model type `phi3` is not known"):
        surgery.merge(surgery.open_checkpoint(saved("phi3")), surgery.open_adapter(file, alpha=4))
    with pytest.raises(AdapterError, match="does not say alpha"):
        surgery.open_adapter(file)


def test_rows_of_other_heads_are_refused(saved: Saved, tmp_path: Path) -> None:
    tensors = {
        "layers.0.attn.q_proj.lora_a.weight": torch.ones(4, 48),
        "layers.0.attn.q_proj.lora_b.weight": torch.ones(42, 4),
    }
    file = saved_as(tmp_path, tensors, "adapter.safetensors")
    with pytest.raises(AdapterError, match="not those of the base's heads"):
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(file, alpha=4))
