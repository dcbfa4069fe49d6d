"""Configs that are not of their tensors, where shapes do not tell: refused by name, before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, SurgeryError

from .cases import Case, fresh, trained

LINEARS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    fresh("bare").save_pretrained(folder)
    return folder


def changed(base: Path, folder: Path, config: peft.PeftConfig, **said: Any) -> Path:
    """An adapter of that config, of which adapter_config.json says something else."""
    trained(Case("bare", lambda: config), base, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **said}))
    return folder


WRONG: dict[str, tuple[Callable[[], peft.PeftConfig], dict[str, Any], str]] = {
    "LoKr's rank": (lambda: peft.LoKrConfig(r=64, alpha=16, target_modules=LINEARS), {"r": 2}, "two factors"),
    "no rank": (lambda: peft.LoKrConfig(r=64, target_modules=LINEARS), {"r": 0}, "is no rank"),
    "half a rank": (lambda: peft.LoHaConfig(r=4, target_modules=LINEARS), {"r": 4.5}, "is no rank"),
    "alpha": (lambda: peft.LoHaConfig(r=4, target_modules=LINEARS), {"alpha": 10**400}, "is no number"),
    "a float's alpha": (lambda: peft.LoHaConfig(r=4, target_modules=LINEARS), {"alpha": 1e308}, "is no number"),
    "another kind": (lambda: peft.HRAConfig(r=4, target_modules=LINEARS), {"peft_type": "OFT"}, "different kinds"),
    "LoRA": (lambda: peft.HRAConfig(r=4, target_modules=LINEARS), {"peft_type": "LORA"}, "different kinds"),
    "of LoRA": (lambda: peft.LoraConfig(r=4, target_modules=LINEARS), {"peft_type": "HRA"}, "different kinds"),
}


@pytest.mark.parametrize("name", WRONG)
def test_it_is_refused_by_name(name: str, base: Path, tmp_path: Path) -> None:
    config, said, what = WRONG[name]
    folder = changed(base, tmp_path / "a", config(), **said)
    with pytest.raises(AdapterError) as caught:
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
    assert what in str(caught.value) and str(folder) in str(caught.value)


def test_a_rank_that_nobody_could_draw(base: Path, tmp_path: Path) -> None:
    """Nothing is drawn by a number that the vectors contradict."""
    config = peft.VeraConfig(r=4, target_modules=LINEARS, save_projection=False)
    folder = changed(base, tmp_path / "a", config, r=10**12)
    held = load_file(folder / "adapter_model.safetensors")
    save_file({key: value for key, value in held.items() if "vera_A" not in key}, folder / "adapter_model.safetensors")
    with pytest.raises(SurgeryError, match="says r = "):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(folder))
