"""Regular expressions of adapters: none may take forever, and those that people write are taken."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from expressions import HOSTILE, USUAL
from safetensors.torch import save_file

import surgery
from surgery.errors import AdapterError
from surgery.files.hostile_patterns import check_patterns

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("key", ["target_modules", "exclude_modules", "feedforward_modules", "layers_pattern"])
def test_what_may_take_forever_is_refused(pattern: str, key: str) -> None:
    with pytest.raises(AdapterError, match=f"{key} has a regular expression that may take forever"):
        check_patterns({key: pattern}, "there")


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_of_patterns_for_ranks_too(pattern: str, key: str) -> None:
    with pytest.raises(AdapterError, match=f"{key} has a regular expression that may take forever"):
        check_patterns({key: {"q_proj": 4, pattern: 8}}, "there")


@pytest.mark.parametrize("pattern", USUAL)
def test_what_people_write_is_taken(pattern: str) -> None:
    re.compile(pattern)
    check_patterns({"target_modules": pattern, "rank_pattern": {pattern: 2}, "target_parameters": None}, "there")


@pytest.mark.parametrize("config", [{"target_modules": "(q_proj"}, {"rank_pattern": {"q_proj[": 3}}])
def test_what_is_no_expression_is_named(config: dict[str, object]) -> None:
    with pytest.raises(AdapterError, match="has a regular expression that is none: "):
        check_patterns(config, "there")


def test_an_adapter_with_one_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "target_modules": "(([a-z._0-9])+)+!"}')
    save_file({NAME: torch.zeros(2, 3)}, tmp_path / "adapter_model.safetensors")
    before = time.monotonic()
    with pytest.raises(AdapterError, match="may take forever"):
        surgery.open_adapter(tmp_path)
    assert time.monotonic() - before < 5
