"""What an injected adapter has where nothing is said, judged by PEFT: its table of targets, and its config of the
same adapter.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import tiny_models
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFTS
from typer.testing import CliRunner

import surgery
from surgery.errors import SurgeryError
from surgery.models.default_targets import _TARGETS, default_targets
from surgery_cli.app import app

Saved = Callable[..., Path]


def test_the_table_is_pefts() -> None:
    assert {kind: default_targets(kind) for kind in _TARGETS} == PEFTS


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_without_a_target_the_modules_are_pefts(saved: Saved, family: str) -> None:
    base = surgery.open_checkpoint(saved(family))
    adapter = surgery.inject(base)
    live = peft.get_peft_model(tiny_models.build(family), peft.LoraConfig(r=8))
    assert set(adapter.lora) == {
        name.split("base_model.model.")[1] for name, module in live.named_modules() if hasattr(module, "lora_A")
    }
    assert adapter.config["target_modules"] == PEFTS[family]
    assert f"as PEFT takes them for {family}" in adapter.notes[0]
    assert not any("no target was given" in note for note in surgery.inject(base, "all-linear").notes)


def test_dropout_is_written(saved: Saved, tmp_path: Path) -> None:
    told = ["inject", str(saved("llama")), "--lora-dropout", "0.05", "-o", str(tmp_path / "lora")]
    assert CliRunner().invoke(app, told).exit_code == 0
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["lora_dropout"] == 0.05
    assert peft.LoraConfig.from_pretrained(tmp_path / "lora").lora_dropout == 0.05


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 5, float("nan"), float("inf")])
def test_a_dropout_that_is_none_is_refused(saved: Saved, dropout: float) -> None:
    with pytest.raises(SurgeryError, match="a dropout of"):
        surgery.inject(surgery.open_checkpoint(saved("llama")), ["q_proj"], lora_dropout=dropout)
