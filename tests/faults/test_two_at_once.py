"""Laws of runs that meet: one works, and the other is told who does; a dead process holds nothing, and what another
host holds is respected. A source that somebody writes to meanwhile ends the run.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import hashes
from forks import beside, dying_at, ended, forked, started
from handmade import write_tensors

import surgery
from surgery.errors import DestinationError, SourceChanged

TENSORS = {"a.weight": ("F32", (7, 5)), "b.weight": ("BF16", (64, 3))}
HELD = "another run is writing there"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    write_tensors(tmp_path / "base" / "model.safetensors", TENSORS)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "none"}')
    return tmp_path / "base"


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


def lock_of(dest: Path) -> Path:
    return dest.parent / f".{dest.name}.surgery.lock"


def write(base: Path, dest: Path, **options: object) -> surgery.Report:
    return surgery.write(surgery.open_checkpoint(base), dest, **options)


def refused(action: Callable[[], object]) -> DestinationError:
    with pytest.raises(DestinationError, match=HELD) as caught:
        action()
    return caught.value


@contextmanager
def running(base: Path, dest: Path) -> Iterator[int]:
    """The process id of a run that waits in the middle; it goes on at the end."""
    (told, tell), (hear, go_on) = os.pipe(), os.pipe()

    def hold(step: surgery.Step) -> None:
        if step.kind == "finished":
            os.write(tell, b".")
            os.read(hear, 1)

    child = started(partial(write, base, dest, on_step=hold))
    os.read(told, 1)
    try:
        yield child
    finally:
        os.write(go_on, b".")
        assert ended(child) == 0


def test_the_other_is_told_who_writes(base: Path, dest: Path) -> None:
    with running(base, dest) as child:
        for act in (partial(write, base, dest), partial(surgery.clean, dest)):
            error = refused(act)
            assert error.where[0] == str(dest)
            said = re.fullmatch(
                r"it is process (\d+) on (\S+), since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)", error.where[1]
            )
            assert said and (int(said[1]), said[2]) == (child, socket.gethostname())
            assert error.help == "wait for it, or choose another output"
    assert (dest / "model.safetensors").exists() and beside(dest) == []


def test_a_lock_that_says_nothing_is_held_all_the_same(base: Path, dest: Path) -> None:
    """Of another version of surgery, or written to by somebody."""
    with running(base, dest):
        for text in ("", "garbage", "[1]", '{"pid": 1e400}', '{"pid": "x", "host": 3}', "\0" * 5000):
            lock_of(dest).write_text(text)
            assert refused(partial(write, base, dest)).where == (str(dest),)


def dead(pid: int = 0) -> int:
    """The id of a process that is no more."""
    return pid or _ended(started(lambda: None))


def _ended(child: int) -> int:
    ended(child)
    return child


@pytest.mark.parametrize(
    "whose", ["of who died", "of who died, and its number is another's by now", "nobody's", "torn"]
)
def test_a_lock_of_a_dead_process_is_taken_over(base: Path, dest: Path, whose: str) -> None:
    """A process id says nothing: what is locked is."""
    assert forked(partial(write, base, dest, on_step=dying_at(2))) < 0
    lock = lock_of(dest)
    assert json.loads(lock.read_text())["host"] == socket.gethostname()
    if "number" in whose:
        lock.write_text(json.dumps(json.loads(lock.read_text()) | {"pid": os.getppid()}))
    elif whose == "nobody's":
        lock.write_text("")
    elif whose == "torn":
        lock.write_text(lock.read_text()[:20])
    write(base, dest)
    assert (dest / "model.safetensors").exists() and beside(dest) == []


@pytest.mark.parametrize("act", ["write", "overwrite", "clean"])
def test_a_lock_of_another_host_is_respected(base: Path, dest: Path, act: str) -> None:
    """Its flock may not show here. The way out is in the error, and works."""
    if act == "overwrite":
        write(base, dest)
    assert forked(partial(write, base, dest, on_step=dying_at(2), overwrite=act == "overwrite")) < 0
    before, lock = beside(dest), lock_of(dest)
    told = {"pid": 4711, "host": "elsewhere\x1b[2J", "since": "2026-01-02 03:04:05 UTC"}
    lock.write_text(json.dumps(told))
    found = hashes(dest.parent, without=())
    acts = {
        "write": partial(write, base, dest),
        "overwrite": partial(write, base, dest, overwrite=True),
        "clean": partial(surgery.clean, dest),
    }
    error = refused(acts[act])
    assert error.where[1].startswith("it is process 4711 on elsewhere") and "\x1b" not in str(error)
    assert error.where[1].endswith("since 2026-01-02 03:04:05 UTC")
    assert error.help == f"wait for it, or choose another output; if that run is no more: rm {lock}"
    assert beside(dest) == before and hashes(dest.parent, without=()) == found
    lock.unlink()
    acts[act]()
    assert beside(dest) == []


def test_a_full_disk_can_be_locked(base: Path, dest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds it is then not said; it is held."""
    real = os.pwrite

    def pwrite(fd: int, data: bytes, at: int) -> int:
        if os.readlink(f"/proc/self/fd/{fd}") == str(lock_of(dest)):
            raise OSError(28, os.strerror(28))
        return real(fd, data, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    write(base, dest)
    assert beside(dest) == []


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes at the same place, size and time."""
    assert len(old) == len(new) and old in path.read_bytes()
    before, raw = path.stat(), path.read_bytes()
    path.write_bytes(raw.replace(old, new, 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(("old", "new"), [(b"a.weight", b"c.weight"), (b'"F32"', b'"I32"'), (b"[7, 5]", b"[5, 7]")])
def test_a_header_that_changes_under_the_run(base: Path, dest: Path, old: bytes, new: bytes) -> None:
    """Size and time are as they were: what the file says of its tensors is not."""
    shard, changed = base / "model.safetensors", False

    def change(step: surgery.Step) -> None:
        nonlocal changed
        if step.kind == "finished" and not changed:
            changed = True
            rewritten(shard, old, new)

    with pytest.raises(SourceChanged, match="an input changed after it was opened") as caught:
        write(base, dest, on_step=change)
    assert changed and caught.value.where[0] == str(shard) and "header" in caught.value.where[1]
    assert not dest.exists() and len(beside(dest)) == 1
