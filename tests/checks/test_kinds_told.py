"""Adapters of other kinds than LoRA, looked at and checked without their base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surgeries.merging.methods.cases import Case, trained
from surgeries.merging.methods.test_shared import CONFIGS, edited, setting, without

import surgery


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("kinds")

    def get(name: str) -> Path:
        path = folder / name
        return path if path.exists() else trained(Case("linear", CONFIGS[name]), folder, path)

    return get


def wrong(folder: Path) -> list[str]:
    """What the checks that fail say."""
    report = surgery.verify(folder)
    return [f"{check.name} {check.where}" for check in report.checks if check.ok is False]


@pytest.mark.parametrize("name", sorted(CONFIGS.keys() - {"unilora drawn", "tinylora drawn", "randlora drawn"}))
def test_what_is_whole_is_told(name: str, kind: Callable[[str], Path]) -> None:
    found = surgery.inspect(kind(name)).adapter
    config = json.loads((kind(name) / "adapter_config.json").read_text())
    assert found["peft_type"] == config["peft_type"] and found["modules"] == 6
    assert all(count == 6 for count in found["parts"].values())
    held = load_file(kind(name) / "adapter_model.safetensors")
    shared = {key.removeprefix("base_model."): list(value.shape) for key, value in held.items() if ".model." not in key}
    assert found.get("shared", {}) == shared
    assert not wrong(kind(name))


BROKEN: list[tuple[str, Any, str]] = [
    ("vera", setting(peft_type="LOHA"), "says LOHA, and no tensor is of that kind"),
    ("vera", without("base_model.vera_"), "save_projection is true, and the file has nothing"),
    ("pvera", setting(sample_at_inference=True), "no weight is random"),
    ("unilora drawn", setting(), "order of the class's modules"),
    ("tinylora drawn", setting(), "order of the class's modules"),
    ("randlora drawn", setting(), "has no randlora_A, which all its modules share"),
]


@pytest.mark.parametrize(("name", "edit", "words"), BROKEN)
def test_what_contradicts_itself_is_told(
    name: str, edit: Any, words: str, kind: Callable[[str], Path], tmp_path: Path
) -> None:
    broken = edited(kind(name), tmp_path / "broken", edit)
    assert any(words in line for line in wrong(broken)), wrong(broken)
    assert any(words in note for note in surgery.inspect(broken).notes)


def test_tensors_of_another_kind_are_told(kind: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "mixed").mkdir()
    held = load_file(kind("gralora") / "adapter_model.safetensors")
    held["base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight"] = torch.zeros(2, 48)
    save_file(held, tmp_path / "mixed" / "adapter_model.safetensors")
    (tmp_path / "mixed" / "adapter_config.json").write_bytes((kind("gralora") / "adapter_config.json").read_bytes())
    assert any("k_proj.lora_A.weight are of LORA" in line for line in wrong(tmp_path / "mixed"))
