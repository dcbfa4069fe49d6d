"""Folders as they are found: without permissions, very deep, called as no text is; outputs that cannot be emptied."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from handmade import write_phi3

import surgery
from surgery.errors import DestinationError, FormatError, NotACheckpoint, PlanError, SurgeryError
from surgery.files.entries import entries
from surgery.files.paths import DEEPEST
from surgery.files.walking import walked


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_phi3(tmp_path / "base", layers=2, hidden=16)


def as_anyone(body: Callable[[], object]) -> str:
    """What a SurgeryError of `body` says, in a process that permissions hold for, also where root runs the tests."""
    into, out = os.pipe()
    child = os.fork()
    if not child:
        try:
            for capability in (1, 2):  # to write and to read in spite of permissions
                ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
            _without_capabilities()
            body()
            said = "done"
        except SurgeryError as error:
            said = str(error)
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(out, said.encode())
        os._exit(0)
    os.close(out)
    os.waitpid(child, 0)
    with os.fdopen(into) as stream:
        return stream.read()


def _without_capabilities() -> None:
    """Effective capabilities without those, for root: capset of version 3."""
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    held = (ctypes.c_uint32 * 6)()
    libc.capget(header, held)
    held[0], held[1] = held[0] & ~6, held[1] & ~6
    libc.capset(header, held)


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """Change the mode of a path, for the test."""
    done: list[Path] = []

    def change(path: Path, mode: int) -> None:
        path.chmod(mode)
        done.append(path)

    yield change
    for path in done:
        if path.exists():
            path.chmod(0o755)


def looked(base: Path) -> list[Callable[[], object]]:
    return [
        lambda: surgery.inspect(base),
        lambda: surgery.open_checkpoint(base),
        lambda: surgery.diff(base, base),
    ]


def test_permissions_hold_in_the_process(tmp_path: Path, shut: Callable[[Path, int], None]) -> None:
    (tmp_path / "f").write_text("x")
    shut(tmp_path / "f", 0)
    assert as_anyone(lambda: (tmp_path / "f").read_text()).startswith("PermissionError")


@pytest.mark.parametrize("mode", [0, 0o100])
def test_a_folder_that_cannot_be_read(base: Path, shut: Callable[[Path, int], None], mode: int) -> None:
    shut(base, mode)
    for look in looked(base):
        said = as_anyone(look)
        assert "Permission denied" in said and str(base) in said and "help: " in said
        assert said.startswith("cannot read")
    if not mode:
        assert as_anyone(lambda: surgery.clean(base)).startswith("cannot read a folder: Permission denied")


def test_a_folder_in_it_that_cannot_be_read(base: Path, shut: Callable[[Path, int], None]) -> None:
    (base / "more").mkdir()
    shut(base / "more", 0)
    for look in looked(base):
        assert as_anyone(look).startswith(f"cannot read a folder: Permission denied\n  --> {base / 'more'}")


@pytest.mark.parametrize("mode", [0, 0o300, 0o500])
def test_an_output_in_a_folder_that_is_shut(
    base: Path, tmp_path: Path, shut: Callable[[Path, int], None], mode: int
) -> None:
    (tmp_path / "shut").mkdir()
    shut(tmp_path / "shut", mode)
    out = tmp_path / "shut" / "out"
    said = as_anyone(lambda: surgery.write(surgery.open_checkpoint(base), out))
    assert "Permission denied" in said and str(tmp_path / "shut") in said and "help: " in said
    if mode != 0o500:
        said = as_anyone(lambda: surgery.clean(out))
        assert said.startswith("cannot read a folder: Permission denied")


@pytest.mark.parametrize("inside", ["", ".surgery"])
def test_an_output_that_cannot_be_emptied_is_replaced(
    base: Path, tmp_path: Path, shut: Callable[[Path, int], None], inside: str
) -> None:
    """The new output is in place, the run says so and what is left; later runs work, and clean tells why."""
    out, gone = tmp_path / "o" / "out", tmp_path / "o" / ".out.surgery-gone"
    checkpoint = surgery.open_checkpoint(base)
    surgery.write(checkpoint, out)
    (out / inside).chmod(0o555)

    def again(size: str) -> str:
        def write() -> None:
            report = surgery.write(surgery.open_checkpoint(base), out, size, overwrite=True)
            left = [note for note in report.notes if "cannot be removed" in note]
            assert left == [f"what was replaced cannot be removed: {gone} (surgery clean says why)"]

        return as_anyone(write)

    assert [again("1GB"), again("1KB"), again("1GB")] == ["done"] * 3
    assert surgery.diff(base, out, tensors=".*").equal and gone.exists()
    said = as_anyone(lambda: surgery.clean(out))
    assert said.startswith(f"cannot clean up: Permission denied\n  --> {gone}\n") and "help: mend" in said
    (gone / inside).chmod(0o755)
    assert surgery.clean(out) and os.listdir(tmp_path / "o") == ["out"]
    assert surgery.diff(base, out, tensors=".*").equal


def test_two_outputs_that_cannot_be_emptied(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "o" / "out"
    for size in ("1GB", "1KB", "2KB"):
        wrote = as_anyone(lambda size=size: surgery.write(surgery.open_checkpoint(base), out, size, overwrite=True))
        assert wrote == "done"
        out.chmod(0o555)
    assert sorted(os.listdir(tmp_path / "o")) == [".out.surgery-gone", ".out.surgery-gone2", "out"]
    for folder in (tmp_path / "o").iterdir():
        folder.chmod(0o755)
    assert len(surgery.clean(out)) == 2 and os.listdir(tmp_path / "o") == ["out"]


def deep(folder: Path, levels: int, *, part: str = "n") -> None:
    """A file so many folders down, without a path that would be too long."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(part, dir_fd=here)
        here, above = os.open(part, os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(os.open("f.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def flat(folder: Path) -> None:
    """Nothing is below a folder, however deep it was."""
    subprocess.run(["bash", "-c", "rm -rf n*"], cwd=folder, check=True)


def test_very_deep_folders(base: Path) -> None:
    """Looked at, and carried nowhere."""
    deep(base, 1500)
    try:
        assert sum(1 for _ in entries(str(base))) == 1501 + 4
        with pytest.raises(PlanError, match="1 outputs would have names that are no paths") as caught:
            surgery.plan(surgery.open_checkpoint(base))
        assert caught.value.where[0].endswith(f"f.txt: in more than {DEEPEST} folders")
    finally:
        flat(base)


def test_a_path_longer_than_the_system_takes(base: Path) -> None:
    deep(base, 30, part="n" * 200)
    with pytest.raises(FormatError, match="cannot read a folder: File name too long") as error:
        surgery.open_checkpoint(base)
    assert error.value.help == "its path is too long: move what holds it nearer to the root"
    flat(base)


def test_as_deep_as_may_be(base: Path, tmp_path: Path) -> None:
    deep(base, DEEPEST - 1)
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out")
    assert surgery.diff(base, tmp_path / "out").equal
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out", "1KB", overwrite=True)


def test_a_walk_reads_each_folder_once(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And asks where links lead for links alone: its work grows with what is there, not with its square."""
    deep(base, 300)
    asked: list[str] = []
    real, scandir = os.path.realpath, os.scandir
    monkeypatch.setattr(os.path, "realpath", lambda path, **more: asked.append(str(path)) or real(path, **more))
    read: list[str] = []
    monkeypatch.setattr(os, "scandir", lambda path: read.append(str(path)) or scandir(path))
    assert len(list(walked(str(base)))) == 5
    assert not asked and len(read) == 301


def test_names_that_are_no_text(base: Path, tmp_path: Path) -> None:
    """A folder may be called anything, and an output too; a carried file may not, and is named."""
    odd, out = tmp_path / os.fsdecode(b"b\xff\xfe"), tmp_path / os.fsdecode(b"o\xff")
    base.rename(odd)
    report = surgery.write(surgery.open_checkpoint(odd), out)
    assert surgery.diff(out, odd).equal and report.output == str(out)
    manifest = json.loads((out / ".surgery" / "manifest.json").read_text())
    assert manifest["inputs"][0]["name"] == r"b\xff\xfe"
    assert surgery.inspect(odd).path == str(odd)
    (odd / os.fsdecode(b"\xff.txt")).write_text("x")
    with pytest.raises(PlanError, match="1 outputs would have names that are no paths inside a folder") as caught:
        surgery.plan(surgery.open_checkpoint(odd))
    assert str(caught.value).encode() and r"\udcff.txt: not UTF-8" in str(caught.value)


def test_a_plan_knows_folders_by_more_than_their_text(base: Path, tmp_path: Path) -> None:
    one, other = tmp_path / os.fsdecode(b"b\xff"), tmp_path / os.fsdecode(b"b\xfe")
    base.rename(one)
    first = surgery.plan(surgery.open_checkpoint(one)).identity
    one.rename(other)
    assert surgery.plan(surgery.open_checkpoint(other)).identity != first


@pytest.mark.parametrize("name", [".surgery", ".Surgery"])
def test_a_file_where_the_manifest_goes_is_refused_before_a_byte_is_written(
    base: Path, tmp_path: Path, name: str
) -> None:
    (base / name).write_text("x")
    with pytest.raises(PlanError, match="1 outputs would lie in a folder that is not theirs"):
        surgery.write(surgery.open_checkpoint(base), tmp_path / "o" / "out")
    assert not (tmp_path / "o").exists()


def test_in_a_folder_that_is_gone(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert surgery.inspect(base).model_type == "phi3"
    for act in (lambda: surgery.inspect("x"), lambda: surgery.write(surgery.open_checkpoint(base), "x")):
        with pytest.raises((NotACheckpoint, DestinationError), match="the working folder is not there any more"):
            act()
