"""What lies in a folder and is no file: links, devices, FIFOs, sockets; and names that are no text, or obey no rule."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from .rows import (
    ADAPTER,
    ADAPTER_CONFIG,
    INDEX,
    OF_ADAPTERS,
    OF_CHECKPOINTS,
    OUTSIDE,
    SHARD,
    Content,
    Row,
    link,
    made_of,
    put,
)

MODELS = (SHARD, INDEX, "config.json", ".surgery/manifest.json")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    """A socket; its path may be long."""
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def leading_out(path: Path) -> None:
    """A link to what lies outside, from whatever folder; `x` lies where commands run."""
    place = next(parent for parent in path.parents if parent.name == "place")
    path.symlink_to(os.path.relpath(place / OUTSIDE / "secret", path.parent))


KINDS: dict[str, tuple[Content, str]] = {
    "a FIFO": (fifo, "it is a FIFO"),
    "a socket": (unix_socket, "it is a socket"),
    "a link to /dev/zero": (link("/dev/zero"), "leads out of the folder|it is a device"),
    "a link to a terminal": (link("/dev/tty"), "leads out of the folder|it is a device"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "leads nowhere"),
    "a link to nothing": (link("nowhere"), "leads nowhere"),
    "a link to what lies outside": (leading_out, "leads out of the folder"),
    "a link to a file of the system": (link("/etc/passwd"), "leads out of the folder"),
    "a link to what a process has open": (link("/proc/self/fd/0"), "leads out of the folder|nowhere|device|FIFO"),
}


def fan(place: Path) -> None:
    """24 levels of two links each: 16 million paths to one folder."""
    (place / "x" / "d0").mkdir()
    for level in range(1, 25):
        (place / "x" / f"d{level}").mkdir()
        for side in "ab":
            (place / "x" / f"d{level}" / side).symlink_to(f"../d{level - 1}")


def ring(place: Path) -> None:
    """Twelve folders, in each a link to each other one."""
    for one in range(12):
        (place / "x" / f"d{one}").mkdir()
        for other in range(12):
            if other != one:
                (place / "x" / f"d{one}" / f"d{other}").symlink_to(f"../d{other}")


def deep(place: Path) -> None:
    """A file 500 folders down."""
    here = os.open(place / "x", os.O_RDONLY)
    for _ in range(500):
        os.mkdir("n", dir_fd=here)
        here, above = os.open("n", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(os.open("f.txt", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)


def called(name: bytes) -> Callable[[Path], None]:
    """A file of that name."""
    return lambda place: (place / "x" / os.fsdecode(name)).write_text("x")


def carried(target: str) -> Callable[[Path], None]:
    """A file that would be carried is a link."""
    return lambda place: (place / "x" / "tokenizer.model").symlink_to(target)


def a_folder_outside(place: Path) -> None:
    (place / "x" / "more").symlink_to(f"../{OUTSIDE}")


def named_surgery(place: Path) -> None:
    (place / "x" / ".surgery").write_text("x")


WRITING = ("reshard x -o w/o", "split x -o w/o")
FOLDERS: dict[str, tuple[Callable[[Path], object], str, tuple[str, ...], str]] = {
    "links that fan out": (fan, "links between folders", ("inspect x", *WRITING), "d0"),
    "links from each to each": (ring, "links between folders", ("inspect x", *WRITING), "d"),
    "500 folders in each other": (deep, "names that are no paths", WRITING, "f.txt"),
    "a name that is no UTF-8": (called(b"a\xff\xfe.txt"), "names that are no paths", WRITING, "a"),
    "a name of escapes": (called(b"\x1b[2J\x1b]0;x\x07.txt"), "names that are no paths", WRITING, r"\x1b[2J"),
    "a name of new lines": (called(b"a\nerror: b\r.txt"), "names that are no paths", WRITING, r"a\n"),
    "a name with a backslash": (called(b"..\\..\\outside.txt"), "names that are no paths", WRITING, "outside.txt"),
    "a name with a drive": (called(b"C:x.txt"), "names that are no paths", WRITING, "C:x.txt"),
    "a carried file that lies outside": (
        carried(f"../{OUTSIDE}/secret"),
        "leads out",
        ("inspect x", *WRITING),
        "tokenizer.model",
    ),
    "a carried file of the system": (carried("/etc/passwd"), "leads out", ("inspect x", *WRITING), "tokenizer.model"),
    "a carried device": (carried("/dev/zero"), "leads out|it is a device", ("inspect x", *WRITING), "tokenizer.model"),
    "a folder that lies outside": (a_folder_outside, "leads out", ("inspect x", *WRITING), "more"),
    "a file called .surgery": (named_surgery, "not theirs|.surgery", WRITING, ".surgery"),
    "a carried FIFO": (lambda place: fifo(place / "x" / "notes.txt"), "it is a FIFO", WRITING, "notes.txt"),
    "a carried socket": (lambda place: unix_socket(place / "x" / "notes.txt"), "it is a socket", WRITING, "notes.txt"),
}


def _both(place: Path, then: Callable[[Path], object]) -> None:
    made_of("good", {})(place)
    then(place)


def _alone(place: Path, content: Content) -> None:
    put(place / "x.safetensors", content)


def rows() -> Iterator[Row]:
    """Each in the place of a file of a model or an adapter, or beside it, or alone."""
    for name, (content, says) in KINDS.items():
        for file in MODELS:
            make = made_of("good", {file: content})
            words = ("inspect x", "split x -o w/o")
            yield Row(f"folder: {name} as {file}", make, says, words, file.rpartition("/")[2], OF_CHECKPOINTS)
        for file in (ADAPTER, ADAPTER_CONFIG):
            make = made_of("adapter", {file: content})
            yield Row(f"folder: {name} as {file}", make, says, ("merge good x -o w/o",), file, OF_ADAPTERS)
        make = partial(_alone, content=content)
        yield Row(f"folder: {name} alone", make, f"{says}|", ("inspect x.safetensors",), "x.safetensors")
    for name, (then, says, words, file) in FOLDERS.items():
        yield Row(f"folder: {name}", partial(_both, then=then), says, words, file, OF_CHECKPOINTS)
