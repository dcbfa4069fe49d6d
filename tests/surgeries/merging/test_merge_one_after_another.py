"""Merges in one run that replace the same tensors: the last one stays, and every tensor that was opened is accounted
for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from safetensors.torch import load_file

import surgery

Saved = Callable[..., Path]
CASES: dict[str, tuple[str, Mapping[str, Any]]] = {
    "a head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied and a norm": ("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "biases": ("gpt2", {"target_modules": ["c_attn"], "bias": "all"}),
    "trained tokens": ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [3, 50]}),
    "LoRA on what is saved": ("llama", {"target_modules": ["q_proj", "embed_tokens"], "modules_to_save": ["lm_head"]}),
}


def trained(family: str, options: Mapping[str, Any], folder: Path, seed: int) -> Path:
    model = peft.get_peft_model(tiny_models.build(family), peft.LoraConfig(r=2, **options))
    made = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=made))
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_both_are_accounted_for(name: str, count: int, saved: Saved, tmp_path: Path) -> None:
    """As by merges into one another's outputs; and the base comes back."""
    family, options = CASES[name]
    adapters = [trained(family, options, tmp_path / f"a{i}", i) for i in range(count)]
    base = surgery.open_checkpoint(saved(family))
    once, step = base, saved(family)
    for i, adapter in enumerate(adapters):
        once = surgery.merge(once, surgery.open_adapter(adapter))
        surgery.write(
            surgery.merge(surgery.open_checkpoint(step), surgery.open_adapter(adapter)), tmp_path / f"step{i}"
        )
        step = tmp_path / f"step{i}"
    report = surgery.write(surgery.reversible(once, base), tmp_path / "once")
    theirs, ours = (
        {n: t for f in path.glob("*.safetensors") for n, t in load_file(f).items()}
        for path in (step, tmp_path / "once")
    )
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.allclose(ours[key], tensor, rtol=0, atol=1e-6), key
    one = surgery.merge(base, surgery.open_adapter(adapters[0]))
    assert report.dropped >= len(one.dropped) + count - 1
    assert report.replaced - len(one.replaced) in (
        0,
        1,
    )  # what the first merge stored apart is new, and replaced by the second
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "once")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(saved(family))
