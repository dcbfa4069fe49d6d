"""A process goes on after a run that failed: whatever call that was, no descriptor and no thread of it is left."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from calls.jobs import prepare

import surgery
from surgery.errors import SurgeryError
from surgery.evaluation.read import Reader
from surgery.execution.lock import locked
from surgery.lazy.tensor import stored

CALLS = ("fstat", "close", "preadv", "pwrite", "fsync", "unlink", "rename", "open", "truncate")


def descriptors() -> dict[str, str]:
    """Those of this process, and what they lead to."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            continue
    return found


def failing(call: str, k: int, patch: pytest.MonkeyPatch) -> list[int]:
    """From now on, the k-th call of `os` of that name does what it does and says that it failed; or fails, but for
    `close`. The list counts them.
    """
    whole: Callable[..., Any] = getattr(os, call)
    counted = [0]

    def fails(*given: Any, **more: Any) -> Any:
        counted[0] += 1
        if counted[0] == k:
            if call == "close":
                whole(*given, **more)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(*given, **more)

    patch.setattr(os, call, fails)
    return counted


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """A reversible merge into several shards, and then the undoing of one."""
    root = tmp_path_factory.mktemp("leaks") / "root"
    root.mkdir()
    prepare(root, layers=2)

    def run(folder: Path) -> None:
        base = surgery.open_checkpoint(root / "in/base")
        made = surgery.merge(base, surgery.open_adapter(root / "in/adapter"), reversible=True)
        surgery.write(made, folder / "merged", "2KB", workers=2)
        surgery.write(surgery.unmerge(surgery.open_checkpoint(root / "in/merged")), folder / "base", workers=2)

    return run


@pytest.mark.parametrize("call", CALLS)
def test_nothing_is_left_of_a_run_that_failed(call: str, merged: Callable[[Path], None], tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        count = failing(call, 0, patch)
        merged(tmp_path / "whole")
    failed, threads, before = 0, threading.active_count(), descriptors()
    every = max(1, count[0] // 6)
    for k in range(1, count[0] + 1, every):
        with pytest.MonkeyPatch.context() as patch:
            failing(call, k, patch)
            try:
                merged(tmp_path / f"{k}")
            except (SurgeryError, OSError):
                failed += 1
        assert (descriptors(), threading.active_count()) == (before, threads), f"{call} #{k}"
    assert failed or call == "close"


def test_one_that_cannot_be_closed_leaves_no_other_open(merged: Callable[[Path], None], tmp_path: Path) -> None:
    merged(tmp_path)
    opened, before = surgery.open_checkpoint(tmp_path / "merged"), descriptors()
    files = {tensor.file for one in opened.tensors.values() for tensor in stored(one)}
    assert len(files) > 2
    reader = Reader()
    for file in files:
        reader.fd(file)
    with pytest.MonkeyPatch.context() as patch:
        failing("close", 1, patch)
        reader.close()
    assert descriptors() == before


def test_a_lock_that_cannot_be_removed_is_let_go(tmp_path: Path) -> None:
    path, dest = str(tmp_path / "lock"), str(tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match=r"Input/output"):
        failing("unlink", 1, patch)
        with locked(path, dest):
            pass
    with locked(path, dest):
        pass
