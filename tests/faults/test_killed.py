"""Laws of a run that dies: the destination is absent or whole, the inputs are untouched, and a rerun ends in the
same bytes.

A child process kills itself at every step of a run, and at every system call that changes something; a larger run is
killed from outside at random moments. What a machine does that loses its power is not tested here: the executor
syncs a shard before it gets its name, but no test can pull the plug.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from forks import beside, dying_at, ended, forked, started
from handmade import write_adapter, write_phi3

import surgery
from surgery import Report, Step
from surgery.errors import DestinationError
from surgery.execution import stage
from surgery.execution.stage import stages
from surgery.execution.writing_inside import PARTS

KILLED = -signal.SIGKILL
SIZES = {
    "q_proj": (48, 48),
    "k_proj": (24, 48),
    "v_proj": (24, 48),
    "o_proj": (48, 48),
}  # of the small Phi-3 of tiny_models.py
MODULES = {f"model.layers.{i}.self_attn.{part}": size for i in range(3) for part, size in SIZES.items()}


@dataclass(frozen=True)
class Job:
    """A surgery that can be run again and again: split, merged and sharded anew."""

    base: Path
    adapter: Path
    shard_size: str

    def write(self, dest: Path, **options: Any) -> Report:
        checkpoint = surgery.merge(
            surgery.split_qkv(surgery.open_checkpoint(self.base)), surgery.open_adapter(self.adapter)
        )
        return surgery.write(checkpoint, dest, self.shard_size, **options)

    def inputs(self) -> dict[str, str]:
        return {f"{folder.name}/{k}": v for folder in (self.base, self.adapter) for k, v in whole(folder).items()}


def whole(folder: Path) -> dict[str, str]:
    """Every file of a folder by its hash, the manifest too."""
    return hashes(folder, without=())


@pytest.fixture(scope="module")
def job(saved: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Job:
    return Job(
        saved("phi3", shard="40KB"), write_adapter(tmp_path_factory.mktemp("adapter") / "first", MODULES), "30KB"
    )


@pytest.fixture(scope="module")
def other(job: Job) -> Job:
    """The same surgery with an adapter of the same shapes: its output has the same names, headers and sizes."""
    return Job(job.base, write_adapter(job.adapter.parent / "second", MODULES, seed=1), job.shard_size)


@pytest.fixture(scope="module")
def want(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return written(job, tmp_path_factory.mktemp("want") / "out")


@pytest.fixture(scope="module")
def old(other: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output that stands where the new one is to be written."""
    folder = tmp_path_factory.mktemp("old") / "out"
    other.write(folder)
    return folder


def written(job: Job, dest: Path) -> dict[str, str]:
    job.write(dest)
    return whole(dest)


def steps_of(job: Job, dest: Path, **options: Any) -> list[Step]:
    """The steps of an undisturbed run."""
    seen: list[Step] = []
    job.write(dest, on_step=seen.append, **options)
    return seen


def finished_in(dest: Path, want: dict[str, str]) -> dict[str, int]:
    """The shards that stand under their final names in the one stage of `dest`: name -> bytes. All must be right."""
    found = stages(str(dest))
    assert len(found) <= 1
    hashed = hashes(Path(found[0]), without=(PARTS,)) if found else {}
    shards = [name for name in hashed if name.endswith(".safetensors")]
    assert {name: hashed[name] for name in shards}.items() <= want.items()
    return {name: os.path.getsize(os.path.join(found[0], name)) for name in shards}


def check_rerun(job: Job, dest: Path, want: dict[str, str], **options: Any) -> None:
    """A rerun makes just what is missing, ends in the bytes of an undisturbed run, and leaves nothing beside them."""
    done = finished_in(dest, want)
    steps: list[Step] = []
    report = job.write(dest, on_step=steps.append, **options)
    all_shards = {name for name in want if name.endswith(".safetensors")}
    assert {s.name for s in steps if s.kind == "resumed"} == set(done)
    assert sorted(s.name for s in steps if s.kind == "begun") == sorted(all_shards - set(done))
    assert report.resumed == sum(done.values())
    assert whole(dest) == want
    assert beside(dest) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_every_step(job: Job, want: dict[str, str], tmp_path: Path, workers: int) -> None:
    """The destination is absent, or whole at the end; the rerun resumes."""
    inputs = job.inputs()
    steps = steps_of(job, tmp_path / "undisturbed", workers=workers)
    assert whole(tmp_path / "undisturbed") == want
    assert {s.kind for s in steps} == {"begun", "filled", "synced", "finished", "file", "staged", "published"}
    for k in range(1, len(steps) + 1):
        dest = tmp_path / f"at-{k}" / "out"
        assert forked(partial(job.write, dest, workers=workers, on_step=dying_at(k))) == KILLED
        assert job.inputs() == inputs
        if k < len(steps):
            assert not dest.exists()
            check_rerun(job, dest, want, workers=workers)
        else:
            assert whole(dest) == want
            with pytest.raises(DestinationError, match="the destination exists"):
                job.write(dest)
            assert beside(dest) == []
    assert job.inputs() == inputs


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_every_step_of_an_overwrite(
    job: Job, want: dict[str, str], old: Path, tmp_path: Path, workers: int
) -> None:
    """The destination is the old output or the new one, never a mixture and never nothing."""
    before, inputs = whole(old), job.inputs()
    assert before != want and before.keys() == want.keys()
    shutil.copytree(old, tmp_path / "undisturbed")
    count = len(steps_of(job, tmp_path / "undisturbed", workers=workers, overwrite=True))
    for k in range(1, count + 1):
        dest = tmp_path / f"at-{k}" / "out"
        shutil.copytree(old, dest)
        assert forked(partial(job.write, dest, workers=workers, overwrite=True, on_step=dying_at(k))) == KILLED
        assert whole(dest) == (before if k < count else want)
        check_rerun(job, dest, want, workers=workers, overwrite=True)
    assert job.inputs() == inputs


CALLS = ("open", "mkdir", "pwrite", "copy_file_range", "truncate", "fsync", "rename", "unlink", "rmdir")


class Entries:
    """A folder's entries by name, so that what is removed first is known: `.surgery`, with the manifest."""

    def __init__(self, path: Any) -> None:
        with REAL_SCANDIR(path) as entries:
            self.left = iter(sorted(entries, key=lambda entry: entry.name))

    def __iter__(self) -> Entries:
        return self

    def __next__(self) -> Any:
        return next(self.left)

    def __enter__(self) -> Entries:
        return self

    def __exit__(self, *_: object) -> None:
        pass


REAL_SCANDIR = os.scandir


def before_each(call: Callable[[], None]) -> None:
    """From now on `call` is called before each system call that may change something."""

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def instead(*args: Any, **kwargs: Any) -> Any:
            call()
            return real(*args, **kwargs)

        return instead

    for name in CALLS:
        setattr(os, name, wrapped(getattr(os, name)))
    stage.exchange = wrapped(stage.exchange)
    os.scandir = Entries  # type: ignore[assignment]


def calls_of(action: Callable[[], object], counter: Path) -> int:
    """How many of these calls `action` makes, counted in a child."""

    def counted() -> None:
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1

        before_each(count)
        action()
        total = calls
        counter.write_text(str(total))

    assert forked(counted) == 0
    return int(counter.read_text())


def test_killed_at_every_system_call_of_an_overwrite(job: Job, other: Job, tmp_path: Path) -> None:
    """Also between two steps the destination is the old output or the new one; what is half removed is never resumed.

    The old output and the new one differ in values only, so a shard of the old one would pass for one of the new.
    """
    job, other = Job(job.base, job.adapter, "120KB"), Job(other.base, other.adapter, "120KB")
    old, new = tmp_path / "old", tmp_path / "new"
    other.write(old)
    job.write(new)
    before, after = whole(old), whole(new)
    shutil.copytree(old, tmp_path / "counted" / "out")
    count = calls_of(partial(job.write, tmp_path / "counted" / "out", workers=1, overwrite=True), tmp_path / "count")
    assert count > 50
    states = []
    for k in range(1, count + 1):
        dest = tmp_path / f"at-{k}" / "out"
        shutil.copytree(old, dest)

        def run(dest: Path = dest, k: int = k) -> None:
            before_each(partial(dying_at(k), None))
            job.write(dest, workers=1, overwrite=True)

        assert forked(run) == KILLED
        found = whole(dest)
        assert found in (before, after)
        states.append(found == after)
        if found == before:
            check_rerun(job, dest, after, overwrite=True)
        else:
            job.write(dest, overwrite=True)
        assert whole(dest) == after
        assert beside(dest) == []
        shutil.rmtree(dest.parent)
    assert states == sorted(states)  # from old to new, at one moment
    assert True in states


def test_a_retrained_adapter_does_not_resume_the_old_stage(
    job: Job, other: Job, want: dict[str, str], tmp_path: Path
) -> None:
    """Same shapes, names and sizes, other values: a stage of its own; the stale one is reported, and `clean` removes
    it.
    """
    dest = tmp_path / "out"
    total = len(steps_of(other, tmp_path / "undisturbed"))
    shutil.rmtree(tmp_path / "undisturbed")
    assert forked(partial(other.write, dest, on_step=dying_at(total - 1))) == KILLED
    (stale,) = stages(str(dest))
    finished = [p for p in Path(stale).glob("*.safetensors") if p.name in want]
    assert len(finished) == sum(name.endswith(".safetensors") for name in want)

    report = job.write(dest)
    assert report.resumed == 0
    assert whole(dest) == want
    (note,) = (n for n in report.notes if stale in n)
    size = sum(p.lstat().st_blocks * 512 for p in Path(stale).rglob("*") if not p.is_dir())
    assert size > 0
    assert f"{size} bytes" in note and "surgery clean" in note

    assert surgery.clean(dest) == ((stale, size),)
    assert beside(dest) == []
    assert whole(dest) == want


@pytest.mark.large
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """240 MB, sharded anew and merged, killed twenty times from outside, at least ten of them in the middle of a copy.

    Every second death happens to a run that resumes what an earlier death left.
    """
    hidden, layers = 1792, 6
    base = write_phi3(tmp_path / "base", layers=layers, hidden=hidden)
    parts = {"q_proj": (hidden, hidden), "o_proj": (hidden, hidden)}
    modules = {f"model.layers.{i}.self_attn.{part}": size for i in range(layers) for part, size in parts.items()}
    job = Job(base, write_adapter(tmp_path / "adapter", modules), "40MB")
    inputs = job.inputs()
    assert sum(p.stat().st_size for p in base.iterdir()) > 200e6

    begun = time.monotonic()
    steps = steps_of(job, tmp_path / "want", workers=2)
    pause = (time.monotonic() - begun) / len(steps)
    want = whole(tmp_path / "want")

    moments = random.Random(20)
    in_copy = published = 0
    dest = tmp_path / "outputs" / "out"
    for turn in range(20):
        progress, report = os.pipe()
        child = started(partial(job.write, dest, workers=2, on_step=lambda _, to=report: os.write(to, b".")))
        os.close(report)
        for _ in range(moments.randrange(1, 2 * len(steps) // 3)):
            os.read(progress, 1)
        time.sleep(moments.uniform(0, pause))
        os.kill(child, signal.SIGKILL)
        assert ended(child) in (KILLED, 0)
        os.close(progress)
        in_copy += any(any((Path(stage) / PARTS / "made").rglob("*.safetensors")) for stage in stages(str(dest)))
        if dest.exists():
            assert whole(dest) == want
            published += 1
            shutil.rmtree(dest)
        elif turn % 2:
            check_rerun(job, dest, want, workers=2)
            shutil.rmtree(dest)
    assert job.inputs() == inputs
    assert in_copy >= 10, f"{in_copy} of 20 were in the middle of a copy, {published} had published"
