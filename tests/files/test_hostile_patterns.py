"""Regular expressions of adapters: none may take forever, and those that people write are taken."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgery
from surgery.errors import AdapterError
from surgery.files.hostile_patterns import check_patterns

NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
HOSTILE = [
    r"(a+)+$",
    r"(.*)*x",
    r"([a-z.]+)*!",
    r"(\w|\.)*(\w|\d|x)*!" + r"(?:a|ab|b)*",
    r"(.*a){20,}",
    r"(?:(?:x*)*)*",
    r"(a?){50,90}a{50}",
    r".*.*.*.*.*.*.*.*z",
    r"(?=(.+)+$)x",
]
USUAL = [
    r".*\.(q|v)_proj",
    r"model\.layers\.\d+\.self_attn\.(?:q|k|v|o)_proj",
    r"^(?!.*vision).*(?:q_proj|v_proj).*",
    r"(?:.*?(?:vision|visual|language|text).*?(?:self_attn|attn|mlp|ffn).*?(?:k_proj|v_proj|fc1).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:k_proj|v_proj))",
    "all-linear",
    r"layers\.(1[0-9]|2[0-3])\.mlp\..*",
    r"(?:[^.]+\.)*q_proj",
    r"model(?:\.[a-z_]+|\.\d+)*\.(?:q|v)_proj",
    r"(?:\w+\.)+(?:q_proj|v_proj)",
    r"(?:[^.]*\.)*self_attn\.[qv]_proj",
]


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
