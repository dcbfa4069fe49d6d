"""Time and memory are linear in the number of tensors, and of shards: by counting what is done, not by the clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from counting import counted
from many_tensors import adapter_of, many_tensors

import surgery

LAYERS = (10, 40, 160)  # 63, 243 and 963 tensors, of 6 to a shard
MOST = 4.3  # of what four times the tensors add, against what they added before


def planned(made: Any, size: int | None = None) -> None:
    """The plan, and what a dry run shows of it."""
    plan = surgery.plan(made, size)
    assert plan.tensors and plan.computed_bytes >= 0 and plan.shareable and plan.needed


COMMANDS: dict[str, Callable[[Path], object]] = {
    "inspect": lambda at: surgery.inspect(at / "base"),
    "verify": lambda at: surgery.verify(at / "base", check_class=False),
    "diff": lambda at: surgery.diff(at / "base", at / "other"),
    "reshard": lambda at: planned(surgery.open_checkpoint(at / "base"), 5_000),
    "rename": lambda at: planned(surgery.rename(surgery.open_checkpoint(at / "base"), [("layers", "blocks")])),
    "drop": lambda at: planned(surgery.drop(surgery.open_checkpoint(at / "base"), ".*norm.*")),
    "cast": lambda at: planned(surgery.cast(surgery.open_checkpoint(at / "base"), "float16")),
    "split": lambda at: planned(surgery.split_qkv(surgery.open_checkpoint(at / "base"))),
    "fuse": lambda at: planned(surgery.fuse_qkv(surgery.split_qkv(surgery.open_checkpoint(at / "base")))),
    "merge": lambda at: planned(surgery.merge(surgery.open_checkpoint(at / "base"), surgery.open_adapter(at / "lora"))),
    "reversible": lambda at: planned(
        surgery.merge(surgery.open_checkpoint(at / "base"), surgery.open_adapter(at / "lora"), reversible=True)
    ),
    "inject": lambda at: planned(surgery.inject(surgery.open_checkpoint(at / "base"), target_modules=["o_proj"])),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = [tmp_path_factory.mktemp(f"of {layers}") for layers in LAYERS]
    for layers, folder in zip(LAYERS, found, strict=True):
        many_tensors(folder / "base", layers, 6)
        many_tensors(folder / "other", layers, 10)
        adapter_of(folder / "lora", layers)
    return found


@pytest.mark.parametrize("memory", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", COMMANDS)
def test_four_times_the_tensors_are_four_times_the_work(folders: list[Path], command: str, memory: bool) -> None:
    COMMANDS[command](folders[0])  # what is imported and remembered once
    first, before, last = (counted(lambda at=at: COMMANDS[command](at), memory=memory) for at in folders)
    assert max(growth := last.growth(before, first)) <= MOST, f"steps, scanned, bytes grow {growth}: {last}"


def _copied(names: list[str]) -> None:
    found: dict[str, int] = {}
    for name in names:
        found = {**found, name: 1}


def _looked_up(names: list[str]) -> None:
    for name in names:
        names.index(name)


def _compared(names: list[str]) -> None:
    assert not [1 for name in names for other in names if name is not other and name == other]


@pytest.mark.parametrize("quadratic", [_copied, _looked_up, _compared])
def test_what_is_quadratic_is_seen(quadratic: Callable[[list[str]], None]) -> None:
    names = [f"layers.{i}" for i in range(320)]
    first, before, last = (counted(lambda n=n: quadratic(names[:n]), memory=True) for n in (20, 80, 320))
    assert max(last.growth(before, first)) > 10
