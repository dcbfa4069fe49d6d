"""As many shards as there may be: of them a few are at work at a time, and no more files are open than these need."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from many_tensors import adapter_of, many_tensors
from safetensors.torch import save_file

import surgery
from surgery.errors import VerificationFailed
from surgery.evaluation.read import OPEN_FILES
from surgery.execution.crew import OPEN

WORKERS = 2


def most_open(checkpoint: surgery.Checkpoint, dest: Path, size: int | None = None) -> int:
    """How many files were open at once beyond those that are, in a run on a disk that is slow."""
    before, most = len(os.listdir("/proc/self/fd")), 0

    def looked(step: surgery.Step) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")) - before)

    surgery.write(checkpoint, dest, size, workers=WORKERS, on_step=looked)
    return most


@pytest.fixture
def slow_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def slow(fd: int) -> None:
        time.sleep(0.003)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)


@pytest.mark.usefixtures("slow_disk")
def test_a_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    many = surgery.open_checkpoint(many_tensors(tmp_path / "many", 20, 1))  # each tensor alone
    at_most = 2 * OPEN + (WORKERS + 2) * OPEN_FILES
    assert len(set(many.weight_map.values())) == 123 > at_most - OPEN
    assert most_open(many, tmp_path / "one", 10**9) <= at_most
    assert most_open(surgery.open_checkpoint(tmp_path / "one"), tmp_path / "again", 40) <= OPEN + OPEN_FILES * WORKERS
    merged = surgery.merge(many, surgery.open_adapter(adapter_of(tmp_path / "lora", 20)), reversible=True)
    assert most_open(merged, tmp_path / "merged") <= at_most
    assert most_open(surgery.unmerge(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "back") <= at_most
    assert surgery.diff(tmp_path / "many", tmp_path / "back").equal
    assert surgery.diff(tmp_path / "many", tmp_path / "again").equal


def test_shards_that_are_not_finished_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("surgery.execution.crew.OPEN", 2)
    (base := tmp_path / "base").mkdir()
    for i in range(9):
        save_file({f"layers.{i}.weight": torch.full((3,), 1e30)}, base / f"model-{i + 1:05}-of-00009.safetensors")
    with pytest.raises(VerificationFailed) as caught:
        surgery.write(surgery.cast(surgery.open_checkpoint(base), "float16"), tmp_path / "out")
    assert sum("layers." in line for line in caught.value.where) >= 5  # all were looked at: the first five, and a count
