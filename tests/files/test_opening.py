"""What is no regular file is refused at once, and never opened: a FIFO would wait for ever."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3

import surgery
from surgery.errors import SurgeryError
from surgery.evaluation.read import sha256
from surgery.files.folder import LocalFolder
from surgery.files.opening import regular
from surgery.lazy.tensor import File


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """What hangs fails."""

    def late(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def fifo(path: Path) -> None:
    os.mkfifo(path)


def linked_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the path of a socket has to be short
        one.bind(path.name)
        os.chdir(here)


def folder(path: Path) -> None:
    path.mkdir()


KINDS: dict[str, Callable[[Path], None]] = {"a FIFO": fifo, "a link to a FIFO": linked_fifo, "a socket": listening}
NAMES = ["model.safetensors", "model.safetensors.index.json", "config.json", "tokenizer.json", ".surgery/manifest.json"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_a_checkpoint(tmp_path: Path, kind: str, name: str) -> None:
    base = write_phi3(tmp_path / "base", layers=1, hidden=32)
    if name == "model.safetensors":
        for path in base.glob("model*"):
            path.unlink()
    (base / name).parent.mkdir(exist_ok=True)
    (base / name).unlink(missing_ok=True)
    KINDS[kind](base / name)
    with pytest.raises(
        SurgeryError, match=f"cannot read the file: it is {kind.removeprefix('a link to ')}, not a regular file"
    ) as caught:
        surgery.open_checkpoint(base)
    assert caught.value.where in ((str(base / name),), (str(base / "pipe"),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_no_file_of_an_adapter(tmp_path: Path, kind: str, name: str) -> None:
    adapter = write_adapter(tmp_path / "adapter", {"a": (4, 4)})
    (adapter / name).unlink()
    KINDS[kind](adapter / name)
    with pytest.raises(SurgeryError, match=f"it is {kind.removeprefix('a link to ')}, not a regular file"):
        surgery.open_adapter(adapter)


@pytest.mark.parametrize("kind", KINDS)
def test_no_path_that_is_given(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "x.safetensors")
    for opened in (surgery.open_checkpoint, surgery.open_adapter, surgery.open_any, surgery.inspect):
        with pytest.raises(SurgeryError, match="not a regular file"):
            opened(tmp_path / "x.safetensors")
    assert not surgery.verify(tmp_path / "x.safetensors").ok


@pytest.mark.parametrize("make", [fifo, folder])
def test_what_takes_a_files_place_later(tmp_path: Path, make: Callable[[Path], None]) -> None:
    (tmp_path / "x").write_bytes(b"12")
    file = LocalFolder(str(tmp_path)).file("x")
    (tmp_path / "x").unlink()
    make(tmp_path / "x")
    with pytest.raises(SurgeryError, match=r"an input can no longer be read: it is a (FIFO|folder), not a regular"):
        sha256(file)


def test_a_pipe_that_takes_a_files_place_between_the_look_and_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(b"12")
    looked, (before, descriptors) = os.stat(tmp_path / "x"), (os.stat, set(os.listdir("/proc/self/fd")))
    (tmp_path / "x").unlink()
    fifo(tmp_path / "x")
    monkeypatch.setattr(
        os, "stat", lambda path, **options: looked if str(path).endswith("/x") else before(path, **options)
    )
    with pytest.raises(OSError, match=re.escape("it is a FIFO, not a regular file")):
        regular(str(tmp_path / "x"))
    assert set(os.listdir("/proc/self/fd")) == descriptors


def test_a_device_is_not_opened() -> None:
    with pytest.raises(SurgeryError, match="it is a device, not a regular file"):
        sha256(File("/dev/zero", 10, 0))
