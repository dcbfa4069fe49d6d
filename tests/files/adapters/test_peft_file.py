"""PEFT's weights in one file: as DiffSynth and others write it, without a config, and what trainers leave empty."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from foreign import merged_with, saved_as, weights_in

import surgery
from surgery.errors import AdapterError, SurgeryError

Saved = Callable[..., Path]
AT = "model.layers.0.self_attn.q_proj"


def pair(form: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {form.format(AT, "A"): torch.randn(4, 48), form.format(AT, "B"): torch.randn(40, 4)}


@pytest.mark.parametrize(
    "form", ["{}.lora_{}.default.weight", "{}.lora_{}.weight", "base_model.model.{}.lora_{}.weight"]
)
def test_without_a_config_alpha_is_asked_for(form: str, saved: Saved, tmp_path: Path) -> None:
    """The first is DiffSynth's: bare paths, and the adapter's name."""
    file = saved_as(tmp_path / "a", pair(form), "style.safetensors")
    with pytest.raises(AdapterError, match="does not say alpha") as caught:
        surgery.open_adapter(file)
    assert "--alpha" in str(caught.value)
    old, new = (
        weights_in(path) for path in (saved("llama"), merged_with(saved("llama"), file, tmp_path / "o", alpha=6))
    )
    a, b = pair(form).values()
    assert torch.allclose(new[f"{AT}.weight"] - old[f"{AT}.weight"], 1.5 * b @ a, atol=1e-5)


@pytest.mark.parametrize("config", [None, {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}])
def test_what_zero_3_left_empty_is_said(config: dict[str, object] | None, saved: Saved, tmp_path: Path) -> None:
    empty = {f"base_model.model.{AT}.lora_{x}.weight": torch.empty(0) for x in "AB"}
    file = saved_as(tmp_path / "a", empty, "adapter_model.safetensors", config)
    adapter = tmp_path / "a" if config else file
    with pytest.raises(SurgeryError, match="ungathered ZeRO-3"):
        merged_with(saved("llama"), adapter, tmp_path / "out", **({} if config else {"alpha": 8}))


def test_mlx_and_others_say_the_same_of_it(tmp_path: Path) -> None:
    empty = {f"{AT}.lora_{x}": torch.empty(0, 0) for x in "ab"}
    with pytest.raises(AdapterError, match=r"lora_a is \(0, 0\), and holds nothing"):
        surgery.open_adapter(saved_as(tmp_path, empty, "adapters.safetensors"), alpha=2)
