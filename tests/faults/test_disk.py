"""Laws of disks that fail: the error is ours and says what to do, nothing is left but the stage, and a rerun resumes
it.

The output's disk fills up at every write, in truth on a small tmpfs and by a fault put into each call; the inputs'
disk cannot be read; an input changes under the run.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import threading
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from disks import mounted
from forks import beside, forked
from handmade import write_adapter, write_phi3, write_tensors

import surgery
from surgery import Report, Step
from surgery.checkpoint import Checkpoint
from surgery.errors import DestinationError, NoSpace, SourceChanged, SurgeryError
from surgery.evaluation.workspace import Workspace
from surgery.execution.stage import stages
from surgery.execution.writing_inside import PARTS

NOBODY = 65534
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_phi3(tmp_path / "base", layers=4, hidden=128)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", {f"model.layers.{i}.self_attn.o_proj": (128, 128) for i in range(4)})


@pytest.fixture
def made(base: Path, adapter: Path) -> Checkpoint:
    return surgery.merge(surgery.split_qkv(surgery.open_checkpoint(base)), surgery.open_adapter(adapter))


@pytest.fixture
def want(made: Checkpoint, tmp_path: Path) -> dict[str, str]:
    surgery.write(made, tmp_path / "want" / "out")
    return hashes(tmp_path / "want" / "out", without=())


@pytest.fixture
def dest(tmp_path: Path) -> Path:
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB, which is less than two outputs of `made` need."""
    with mounted(tmp_path / "disk", "2m") as there:
        if not there:
            pytest.skip("mounting needs root")
        yield tmp_path / "disk"


def caught(action: Callable[[], object]) -> SurgeryError:
    with pytest.raises(SurgeryError) as info:
        action()
    return info.value


def check_only_the_stage(dest: Path, *, finished: int | None = None) -> None:
    """Nothing is left but the stage, with this many finished shards."""
    (stage,) = stages(str(dest))
    assert not dest.exists()
    assert beside(dest) == [Path(stage).name]
    if finished is not None:
        assert len(list(Path(stage).glob("*.safetensors"))) == finished


def check_full(error: SurgeryError, dest: Path) -> None:
    """What, where and help of a full disk."""
    assert type(error) is NoSpace
    assert error.what == "the disk is full"
    assert str(dest.parent) in error.where[0]
    assert error.where[1] == "what is finished is kept beside the destination, and a rerun resumes it"
    assert error.help == f"make room and run again, or give the space back with: surgery clean {dest}"


def check_resumed(made: Checkpoint, dest: Path, want: dict[str, str], finished: int) -> None:
    """The rerun takes what is finished, at least so many shards, and ends in the bytes of an undisturbed run."""
    (stage,) = stages(str(dest))
    there = [p.stat().st_size for p in Path(stage).glob("*.safetensors")]
    assert len(there) >= finished
    report = surgery.write(made, dest)
    assert report.resumed == sum(there)
    assert hashes(dest, without=()) == want
    assert beside(dest) == []


def fill(place: Path) -> Path:
    """A file that takes all the room that there is."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return filler


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_fills_up_during_the_run(
    made: Checkpoint, want: dict[str, str], small_disk: Path, workers: int
) -> None:
    """There was room when the run began; another program took it after two shards."""
    dest = small_disk / "models" / "out"
    finished = 0

    def take_all(step: Step) -> None:
        nonlocal finished
        finished += step.kind == "finished"
        if step.kind == "finished" and finished == 2:
            fill(small_disk)

    check_full(caught(partial(surgery.write, made, dest, workers=workers, on_step=take_all)), dest)
    check_only_the_stage(dest)
    assert finished >= 2
    (small_disk / "filler").unlink()
    check_resumed(made, dest, want, finished)


def test_clean_gives_the_space_back(made: Checkpoint, small_disk: Path) -> None:
    """What the error advises works: afterwards the disk is as empty as before."""
    dest = small_disk / "out"
    before = shutil.disk_usage(small_disk).free

    def take_all(step: Step) -> None:
        if step.kind == "finished":
            fill(small_disk)

    error = caught(partial(surgery.write, made, dest, workers=1, on_step=take_all))
    assert error.help is not None
    place = error.help.rpartition("surgery clean ")[2]
    (small_disk / "filler").unlink()
    assert shutil.disk_usage(small_disk).free < before
    surgery.clean(place)
    assert shutil.disk_usage(small_disk).free == before


FULL = [
    ("pwrite", errno.ENOSPC),
    ("copy_file_range", errno.ENOSPC),
    ("copy_file_range", errno.EDQUOT),
    ("truncate", errno.ENOSPC),
    ("fsync", errno.ENOSPC),
    ("rename", errno.ENOSPC),
]


def failing_at(monkeypatch: pytest.MonkeyPatch, call: str, number: int, code: int) -> list[int]:
    """From its call `number` on, `os.<call>` fails. Returns the list that counts its calls."""
    real, calls = getattr(os, call), [0]

    def instead(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if number and calls[0] >= number:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, instead)
    return calls


@pytest.mark.parametrize(("call", "code"), FULL)
def test_a_disk_that_is_full_at_each_call(
    made: Checkpoint, want: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Wherever in the run the disk fills up, the law is the same; only the first sync comes before there is a stage,
    and the very last one after the last rename.
    """
    with monkeypatch.context() as patch:
        calls = failing_at(patch, call, 0, code)
        surgery.write(made, tmp_path / "counted" / "out", workers=2)
    assert calls[0] >= 4
    for number in range(1, calls[0] + 1):
        dest = tmp_path / f"at-{number}" / "out"
        finished: list[Step] = []
        with monkeypatch.context() as patch:
            failing_at(patch, call, number, code)
            on_step = partial(lambda seen, step: seen.append(step) if step.kind == "finished" else None, finished)
            check_full(caught(partial(surgery.write, made, dest, workers=2, on_step=on_step)), dest)
        if (call, number) == ("fsync", calls[0]):
            assert hashes(dest, without=()) == want
            assert beside(dest) == []
        elif (call, number) == ("fsync", 1):  # of the folder above, before there is a stage
            assert not dest.exists() and beside(dest) == []
            assert surgery.write(made, dest).resumed == 0
            assert hashes(dest, without=()) == want
        else:
            check_only_the_stage(dest)
            check_resumed(made, dest, want, len(finished))


def test_too_little_room_is_refused_before_the_first_byte(
    made: Checkpoint, dest: Path, want: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan says how much is needed, to the byte; not even an empty stage is left."""
    needed = surgery.plan(made).needed
    steps: list[Step] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - needed + 1, needed - 1))
    error = caught(partial(surgery.write, made, dest, on_step=steps.append))
    assert type(error) is NoSpace
    assert error.what == f"the output needs {needed} bytes, and {needed - 1} are free"
    assert error.where == (str(dest.parent),)
    assert error.help == "make room, or write to another disk with -o"
    assert steps == []
    assert beside(dest) == []
    assert not dest.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - needed, needed))
    surgery.write(made, dest)
    assert hashes(dest, without=()) == want


def test_a_rerun_needs_room_only_for_the_rest(
    made: Checkpoint, dest: Path, want: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards are there already, and half of one gives its room back."""

    def stop(step: Step) -> None:
        if step.kind == "finished":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        surgery.write(made, dest, workers=1, on_step=stop)
    check_only_the_stage(dest, finished=1)
    stage = Path(stages(str(dest))[0])
    there = sum(p.stat().st_size for p in stage.glob("*.safetensors"))
    half = sum(p.stat().st_blocks * 512 for p in (stage / PARTS).rglob("*") if p.is_file())
    room = surgery.plan(made).needed - there - half
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - room + 1, room - 1))
    assert type(caught(partial(surgery.write, made, dest))) is NoSpace
    check_only_the_stage(dest, finished=1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12 - room, room))
    check_resumed(made, dest, want, 1)


@pytest.mark.parametrize("call", ["preadv", "copy_file_range"])
def test_an_input_that_cannot_be_read(
    made: Checkpoint, base: Path, dest: Path, want: dict[str, str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A bad sector: the error names the input, not the output, whichever call met it."""
    bad = base / "model-00003-of-00004.safetensors"

    def broken(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def instead(fd: int, *args: Any) -> Any:
            if os.readlink(f"/proc/self/fd/{fd}") == str(bad):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(fd, *args)

        return instead

    with monkeypatch.context() as patch:
        for name in {call, "preadv"}:  # what the kernel cannot copy, it cannot read either
            patch.setattr(os, name, broken(name))
        error = caught(partial(surgery.write, made, dest, workers=1))
    assert type(error) is SourceChanged
    assert error.what == f"an input can no longer be read: {os.strerror(errno.EIO)}"
    assert error.where[0].startswith(f"{bad}: byte ")
    assert error.help
    check_only_the_stage(dest, finished=2)
    check_resumed(made, dest, want, 2)


def test_an_output_that_cannot_be_written(
    made: Checkpoint, dest: Path, want: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """EIO from the output's side says so: the input is not to blame."""
    with monkeypatch.context() as patch:
        failing_at(patch, "pwrite", 3, errno.EIO)
        failing_at(patch, "copy_file_range", 3, errno.EIO)
        error = caught(partial(surgery.write, made, dest, workers=1))
    assert type(error) is DestinationError
    assert error.what == f"cannot write the output: {os.strerror(errno.EIO)}"
    check_resumed(made, dest, want, 0)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 5)


def modified(path: Path) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))


def replaced(path: Path) -> None:
    other = path.with_name("other")
    shutil.copy(path, other)
    os.replace(other, path)


def removed(path: Path) -> None:
    path.unlink()


CHANGES = [truncated, modified, replaced, removed]
WHICH = ["base/model-00004-of-00004.safetensors", "adapter/adapter_model.safetensors", "base/config.json"]


@pytest.mark.parametrize("who", ["sync", "0"])
def test_a_file_that_cannot_be_closed(
    base: Path, adapter: Path, dest: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """As one on a network may not: whichever thread it happens to, nobody waits for it for ever."""
    opened = surgery.open_checkpoint(base)
    made = surgery.reversible(surgery.merge(opened, surgery.open_adapter(adapter)), opened)
    close = Workspace.close

    def closed(self: Workspace) -> None:
        close(self)
        if threading.current_thread().name == f"surgery-{who}":
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Workspace, "close", closed)
    found = list[Exception]()

    def write() -> None:
        try:
            surgery.write(made, dest, workers=2)
        except Exception as error:
            found.append(error)

    run = threading.Thread(target=write, daemon=True)
    run.start()
    run.join(60)
    assert not run.is_alive() and len(found) == 1 and not dest.exists()
    assert isinstance(found[0], SurgeryError) and os.strerror(errno.EIO) in str(found[0])
    monkeypatch.undo()
    surgery.write(made, dest)
    surgery.write(made, dest.parent / "want")
    assert hashes(dest, without=()) == hashes(dest.parent / "want", without=())


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("change", CHANGES)
def test_an_input_that_changed_after_it_was_opened(
    made: Checkpoint, tmp_path: Path, dest: Path, change: Callable[[Path], None], which: str
) -> None:
    """Refused by name, and the destination stays absent; what the plan reads, an adapter and small files, at once."""
    path = tmp_path / which
    change(path)
    error = caught(partial(surgery.write, made, dest))
    assert type(error) is SourceChanged
    assert error.where[0] == str(path)
    expected = (
        "an input can no longer be read: No such file" if change is removed else "an input changed after it was opened"
    )
    assert error.what.startswith(expected)
    assert error.help
    if which in WHICH[1:]:
        assert beside(dest) == []
    else:
        check_only_the_stage(dest)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("moment", ["begun", "filled", "finished", "file"])
def test_an_input_that_changes_during_the_run(
    made: Checkpoint, tmp_path: Path, dest: Path, change: Callable[[Path], None], which: str, moment: str
) -> None:
    """Nothing that may hold some bytes of before and some of after is ever published, whenever the change came."""
    path = tmp_path / which
    changed = False

    def at(step: Step) -> None:
        nonlocal changed
        if step.kind == moment and not changed:
            changed = True
            change(path)

    error = caught(partial(surgery.write, made, dest, workers=2, on_step=at))
    assert type(error) is SourceChanged
    assert error.where[0].startswith(str(path))
    check_only_the_stage(dest)


def test_shards_of_a_changed_input_are_not_resumed(base: Path, dest: Path, tmp_path: Path) -> None:
    """The stage belongs to the inputs as they were: after a change the same command begins anew."""
    shard = base / "model-00001-of-00004.safetensors"

    def change(step: Step) -> None:
        if step.kind == "finished" and step.name == shard.name:
            modified(shard)

    assert (
        type(caught(lambda: surgery.write(surgery.open_checkpoint(base), dest, workers=1, on_step=change)))
        is SourceChanged
    )
    report = surgery.write(surgery.open_checkpoint(base), dest)
    assert report.resumed == 0
    surgery.write(surgery.open_checkpoint(base), tmp_path / "undisturbed" / "out")
    assert hashes(dest, without=()) == hashes(tmp_path / "undisturbed" / "out", without=())


def test_a_read_only_disk(made: Checkpoint, small_disk: Path) -> None:
    """Nothing is written, and the error says why."""
    (small_disk / "models").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    error = caught(partial(surgery.write, made, small_disk / "models" / "out"))
    assert type(error) is DestinationError
    assert error.what == f"cannot write the output: {os.strerror(errno.EROFS)}"
    assert str(small_disk / "models") in error.where[0]
    assert error.help == "choose another output with -o"
    assert list((small_disk / "models").iterdir()) == []


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A folder that every user may enter, as pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def as_nobody(action: Callable[[], object]) -> int:
    """How a child ended that did `action` as a user without rights (where we are root)."""

    def lowered() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
        action()

    return forked(lowered)


@pytest.mark.parametrize("name", ["out", "new/folders/out", "empty"])
def test_a_folder_that_may_not_be_written_to(open_place: Path, name: str) -> None:
    """The destination's parent is read-only; the destination is absent, deeper, or an empty folder."""
    write_tensors(open_place / "model.safetensors", {"a": ("F32", (3, 5))})
    parent = open_place / "parent"
    (parent / "empty").mkdir(parents=True)
    parent.chmod(0o555)

    def attempt() -> None:
        error = caught(lambda: surgery.write(surgery.open_checkpoint(open_place / "model.safetensors"), parent / name))
        assert type(error) is DestinationError
        assert error.what == f"cannot write the output: {os.strerror(errno.EACCES)}"
        assert str(parent) in error.where[0]
        assert error.help == "choose another output with -o"

    assert as_nobody(attempt) == 0
    assert [p.name for p in parent.iterdir()] == ["empty"]


def test_a_read_only_empty_destination(open_place: Path) -> None:
    """An empty folder is replaced, not written to: its own mode does not matter."""
    write_tensors(open_place / "model.safetensors", {"a": ("F32", (3, 5))})
    dest = open_place / "parent" / "out"
    dest.mkdir(parents=True)
    for path in (dest.parent, dest):
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
    dest.chmod(0o555)

    def attempt() -> Report:
        return surgery.write(surgery.open_checkpoint(open_place / "model.safetensors"), dest)

    assert as_nobody(attempt) == 0
    assert (dest / "model.safetensors").is_file()
    assert beside(dest) == []
