"""Adapters of loralib, whose own live layers made the fixtures: linear, embeddings, parts of fused projections."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from foreign import TOOLS, check_modules, merged_with, saved_as, weights_in
from safetensors.torch import load_file

import surgery
from surgery.errors import AdapterError, FormatError

FIXTURE = TOOLS / "loralib"
SAID = {"alpha": 6, "enable_lora": (True, False, True)}


@pytest.mark.parametrize("file", ["lora.safetensors", "lora.pt", "whole.safetensors"])
def test_merged_weights_compute_what_loralib_does(file: str, tmp_path: Path) -> None:
    check_modules(FIXTURE, FIXTURE / file, tmp_path, **SAID)


@pytest.mark.parametrize("wrong", [{"alpha": 12}, {"enable_lora": (True, True, False)}, {"enable_lora": (0, 1, 1)}])
def test_another_word_computes_something_else(wrong: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        check_modules(FIXTURE, FIXTURE / "lora.safetensors", tmp_path, **{**SAID, **wrong})


def test_weights_that_are_merged_already_are_refused(tmp_path: Path) -> None:
    """loralib merges on eval(): such a state would be merged twice."""
    with pytest.raises(AdapterError, match="beside LoRA on them, are not the base's") as caught:
        check_modules(FIXTURE, FIXTURE / "merged.safetensors", tmp_path, **SAID)
    assert "eval()" in str(caught.value)


def test_what_the_file_does_not_say_is_asked_for(tmp_path: Path) -> None:
    file = FIXTURE / "lora.safetensors"
    with pytest.raises(AdapterError, match="does not say alpha"):
        surgery.open_adapter(file, enable_lora=(1, 0, 1))
    with pytest.raises(AdapterError, match="LoRA on 2 parts of a fused projection") as caught:
        surgery.open_adapter(file, alpha=6)
    assert "--enable-lora" in str(caught.value)
    with pytest.raises(AdapterError, match="names 1"):
        surgery.open_adapter(file, alpha=6, enable_lora=(1, 0, 0))
    found = surgery.inspect(file)
    assert found.adapter["format"] == "loralib" and "lora_A" in found.adapter["why"]


def test_all_shapes_turned_are_another_program(tmp_path: Path) -> None:
    """A (in, r) and B (r, out) are no loralib's, and of square layers alone they mean one of two things."""
    tensors = {name: one.T for name, one in load_file(FIXTURE / "lora.safetensors").items() if "o_proj" in name}
    file = saved_as(tmp_path, tensors, "a.safetensors")
    with pytest.raises(FormatError, match="of 2 formats at once") as caught:
        surgery.open_adapter(file, alpha=6)
    assert "--format w+ab or x@a@b" in str(caught.value)
    with pytest.raises(AdapterError):
        surgery.open_adapter(file, alpha=6, format="loralib")


def test_options_that_the_format_has_no_use_for_are_refused(tmp_path: Path) -> None:
    tensors = {"x.lora_a": torch.ones(8, 2), "x.lora_b": torch.ones(2, 8)}
    file = saved_as(tmp_path, tensors, "adapters.safetensors")
    with pytest.raises(AdapterError, match="--enable-lora says what a file as MLX writes it says itself"):
        surgery.open_adapter(file, alpha=2, enable_lora=(1, 0))
    with pytest.raises(AdapterError, match="no adapter as torchtune writes it"):
        surgery.open_adapter(file, alpha=2, format="torchtune")
    with pytest.raises(AdapterError, match="there is no format `mlxx`") as caught:
        surgery.open_adapter(file, alpha=2, format="mlxx")
    assert "mlx" in str(caught.value)


def test_two_formats_in_one_file_are_refused(tmp_path: Path) -> None:
    tensors = {**load_file(FIXTURE / "lora.safetensors"), "x.lora_a": torch.ones(8, 2), "x.lora_b": torch.ones(2, 8)}
    with pytest.raises(FormatError, match="of 2 formats at once"):
        surgery.open_adapter(saved_as(tmp_path, tensors, "a.safetensors"), **SAID)


def test_the_history_tells_what_was_said(tmp_path: Path) -> None:
    check_modules(FIXTURE, FIXTURE / "lora.safetensors", tmp_path, **SAID)
    told = surgery.open_checkpoint(tmp_path / "out").history[-1]["adapters"][0]
    assert told["format"] == "loralib" and told["alpha"] == 6 and told["enable_lora"] == [True, False, True]


def test_a_run_is_not_resumed_under_another_word(tmp_path: Path) -> None:
    """What was said is part of what is written: two alphas are two plans."""
    base, file = FIXTURE / "base.safetensors", FIXTURE / "lora.safetensors"

    def identity(alpha: float) -> str:
        adapter = surgery.open_adapter(file, **{**SAID, "alpha": alpha})
        return surgery.plan(surgery.merge(surgery.open_checkpoint(base), adapter)).identity

    assert identity(6) == identity(6) != identity(12)


def test_merged_twice_is_refused(tmp_path: Path) -> None:
    check_modules(FIXTURE, FIXTURE / "lora.safetensors", tmp_path, **SAID)
    with pytest.raises(surgery.PlanError, match="merged into this base already"):
        merged_with(tmp_path / "out", FIXTURE / "lora.safetensors", tmp_path / "again", **SAID)
    assert weights_in(tmp_path / "out")
