"""Adapters of other kinds than LoRA across a fusion: on parts of what the base stores fused, and on the whole of what
it stores apart. Judged by live PEFT models.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from surgeries.merging.test_adapter_fusion import FAMILIES, apart, bases, computed  # noqa: F401

import surgery
from surgery.errors import PlanError

Bases = Callable[[str], tuple[Path, Path]]
KINDS: dict[str, Callable[[list[str]], peft.PeftConfig]] = {
    "loha": lambda on: peft.LoHaConfig(r=3, alpha=6, target_modules=on),
    "ia3": lambda on: peft.IA3Config(target_modules=on, feedforward_modules=[]),
    "vera": lambda on: peft.VeraConfig(r=4, target_modules=on),
    "vera drawn": lambda on: peft.VeraConfig(r=4, target_modules=on, save_projection=False),
    "hra": lambda on: peft.HRAConfig(r=3, target_modules=on),
    "c3a": lambda on: peft.C3AConfig(block_size=12, target_modules=on),
}


def trained(model: Any, config: peft.PeftConfig, folder: Path, seed: int = 0) -> Any:
    """The model with the adapter beside its layers, each parameter moved; saved in `folder`."""
    live = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in live.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    live.save_pretrained(folder)
    return live.eval()


def compare(made: torch.Tensor, wanted: torch.Tensor, before: torch.Tensor) -> None:
    error, effect = (made - wanted).abs().max().item(), (wanted - before).abs().max().item()
    assert error <= 1e-5 * wanted.abs().max().item()
    assert effect >= 1000 * error


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_trained_on_the_parts_of_what_is_fused(family: str, kind: str, bases: Bases, tmp_path: Path) -> None:  # noqa: F811
    fused, split = bases(family)
    parts = list(FAMILIES[family][1][::2])
    before = computed(apart(family, split), family)
    wanted = computed(trained(apart(family, split), KINDS[kind](parts), tmp_path / "a"), family)
    made = surgery.merge(surgery.open_checkpoint(fused), surgery.open_adapter(tmp_path / "a"))
    surgery.write(made, tmp_path / "out")
    compare(computed(type(tiny_models.build(family)).from_pretrained(tmp_path / "out"), family), wanted, before)


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_trained_on_the_whole_of_what_is_apart(family: str, kind: str, bases: Bases, tmp_path: Path) -> None:  # noqa: F811
    split = bases(family)[1]
    live = tiny_models.build(family)
    before = computed(live, family)
    wanted = computed(trained(live, KINDS[kind]([FAMILIES[family][0]]), tmp_path / "a"), family)
    start, adapter = surgery.open_checkpoint(split), surgery.open_adapter(tmp_path / "a")
    made = surgery.merge(start, adapter)
    assert list(made.tensors) == list(start.tensors) and made.weight_map == start.weight_map
    assert any("apart" in note for note in made.notes)
    surgery.write(surgery.reversible(made, start), tmp_path / "out")
    report = surgery.verify(tmp_path / "out", base=split, adapter=tmp_path / "a")
    assert [check.name for check in report.checks if check.ok is False] == ["class"]  # which has them fused
    compare(computed(apart(family, tmp_path / "out"), family), wanted, before)
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(split)


@pytest.mark.parametrize("family", ["phi3", "gpt_neox"])
@pytest.mark.parametrize("order", [1, -1])
def test_two_kinds_on_the_whole_of_what_is_apart(family: str, order: int, bases: Bases, tmp_path: Path) -> None:  # noqa: F811
    """LoRA could be split, and is not where another kind on the same modules cannot be."""
    fused, split = bases(family)
    on = [FAMILIES[family][0]]
    trained(tiny_models.build(family), KINDS["loha"](on), tmp_path / "loha")
    lora = peft.LoraConfig(r=2, target_modules=on, init_lora_weights=False)
    trained(tiny_models.build(family), lora, tmp_path / "lora", seed=1)
    adapters = [surgery.open_adapter(tmp_path / name) for name in ("loha", "lora")][::order]
    weights = [0.5, -1.5][::order]
    start = surgery.open_checkpoint(split)
    made = surgery.merge(start, adapters, weights)
    whole = surgery.split_qkv(surgery.merge(surgery.open_checkpoint(fused), adapters, weights))
    assert list(made.tensors) == list(start.tensors) and made.weight_map == start.weight_map
    assert all(torch.equal(made.load(name), whole.load(name)) for name in made.tensors)
    assert sum(not torch.equal(made.load(name), start.load(name)) for name in made.tensors) == 9


@pytest.mark.parametrize("kind", ["loha", "hra"])
def test_a_part_beside_a_whole_that_has_none_is_refused(kind: str, bases: Bases, tmp_path: Path) -> None:  # noqa: F811
    fused, split = bases("phi3")
    trained(tiny_models.build("phi3"), KINDS[kind](["qkv_proj"]), tmp_path / "whole")
    trained(apart("phi3", split), peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "part")
    both = [surgery.open_adapter(tmp_path / name) for name in ("whole", "part")]
    with pytest.raises(PlanError, match=r"another on its parts, and no part of (LoHa|HRA) is one") as found:
        surgery.merge(surgery.open_checkpoint(fused), both)
    assert str(tmp_path / "whole") in found.value.where[0] and "one after another" in str(found.value.help)


def test_the_whole_and_a_part_are_merged_one_after_another(bases: Bases, tmp_path: Path) -> None:  # noqa: F811
    split = bases("phi3")[1]
    trained(tiny_models.build("phi3"), KINDS["loha"](["qkv_proj"]), tmp_path / "whole")
    trained(apart("phi3", split), peft.LoraConfig(r=2, target_modules=["q_proj"]), tmp_path / "part")
    opened = surgery.open_checkpoint(split)
    with pytest.raises(PlanError, match="another on its parts, and the base stores the parts"):
        surgery.merge(opened, [surgery.open_adapter(tmp_path / name) for name in ("whole", "part")])
