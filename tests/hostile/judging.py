"""A command that meets a hostile file, in a child of this process, and all that is wrong with how it ended."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from commanded import CRASHED, command_line, status_of, streams_into

from .rows import OUTSIDE, SECRET, Row

SECONDS = 1.0  # of the processor
OF_A_CLASS = 3.0, 256 << 20  # the same, and bytes, where a class of transformers is asked, with what it imports
ASKED = 512 << 20  # bytes of address space, used or not
MESSAGE, SHOWN = 4096, 1 << 20  # bytes of an error, and of an answer
PATIENCE = 20  # seconds after which a command hangs
ENDS = (0, 1, 2)


@dataclass(frozen=True)
class Met:
    """How a command ended, what it said, and what it cost: seconds of the processor, bytes of memory and of address
    space beyond what the process had; `outside` is what was done to what lies outside.
    """

    words: str
    status: int
    stdout: bytes = b""
    stderr: bytes = b""
    seconds: float = 0.0
    memory: int = 0
    asked: int = 0
    outside: tuple[str, ...] = ()

    @property
    def error(self) -> str:
        """The message, in which a missing character is seen."""
        return self.stderr.decode("utf-8", "replace")


_EVENTS = {
    0x1: "read", 0x2: "written", 0x4: "changed", 0x20: "opened", 0x40: "moved away", 0x80: "moved there",
    0x100: "made", 0x200: "removed", 0x400: "removed itself", 0x800: "moved itself",
}  # fmt: skip


class Watch:
    """Hears of each opening, reading, writing, making and removing in a folder, whoever does it: Linux's inotify."""

    def __init__(self, folder: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(folder), sum(_EVENTS)) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def heard(self) -> tuple[str, ...]:
        """What was done since this was asked last."""
        found = dict[str, None]()
        while True:
            try:
                raw = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                return tuple(found)
            at = 0
            while at < len(raw):
                _, mask, _, length = struct.unpack_from("iIII", raw, at)
                name = os.fsdecode(raw[at + 16 : at + 16 + length].rstrip(b"\0")) or "."
                found |= {f"{name} was {said}": None for bit, said in _EVENTS.items() if mask & bit}
                at += 16 + length

    def close(self) -> None:
        """It hears no more."""
        os.close(self.fd)


def meet(words: str, place: Path, watch: Watch, main: Callable[[], object] | None = None) -> Met:
    """Run the command in `place`; `main` stands for what the command line does."""
    said = {1: place / "tmp" / "stdout", 2: place / "tmp" / "stderr"}
    watch.heard()
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        code = CRASHED
        try:
            signal.alarm(PATIENCE)
            code = _told(partial(_command, words, place, said, main), tell)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(tell)
    with os.fdopen(told) as stream:
        memory, asked = map(int, stream.read().split() or (0, 0))
    _, status, used = os.wait4(child, 0)
    texts = [path.read_bytes() if path.exists() else b"" for path in said.values()]
    seconds = used.ru_utime + used.ru_stime
    return Met(words, os.waitstatus_to_exitcode(status), *texts, seconds, memory, asked, watch.heard())


def _command(words: str, place: Path, said: dict[int, Path], main: Callable[[], object] | None) -> int:
    os.chdir(place)
    streams_into(said)
    return status_of(main or command_line, words.split(), place / "tmp")


def _told(action: Callable[[], int], tell: int) -> int:
    """What `action` gives; the memory that it took at most is told."""
    before = _held("VmRSS"), _held("VmSize")
    code = action()
    os.write(tell, f"{_held('VmHWM') - before[0]} {_held('VmPeak') - before[1]}".encode())
    return code


def _held(name: str) -> int:
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith(f"{name}:"))


def state(place: Path) -> dict[str, tuple[int, ...]]:
    """All that lies in the folder and is not for commands to write, with what changes when it is touched."""
    found = {}
    for here, folders, names, fd in os.fwalk(os.fsencode(place)):
        inside = os.path.relpath(here, os.fsencode(place))
        if inside == b".":
            folders[:] = [name for name in folders if name not in (b"w", b"tmp")]
        for name in (*folders, *names):
            one = os.stat(name, dir_fd=fd, follow_symlinks=False)
            facts = (one.st_mode, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
            found[os.fsdecode(inside + b"/" + name)] = facts
    return found


def wrong(
    row: Row, met: Met, place: Path, before: dict[str, tuple[int, ...]], seconds: float = SECONDS
) -> Iterator[str]:
    """What is wrong with it, a line each. The folder `w` is as the command left it."""
    yield from _harm(met, place, before, row.memory, seconds)
    if met.stderr or met.words in row.refuse:
        yield from _message(met)
    if met.words in row.refuse:
        if "help: " not in met.error and met.words.split()[0] != "verify":  # which tells what it found
            yield f"the error does not say how to go on: {met.error[:300]}"
        if met.status not in (1, 2):
            yield f"it is not refused: {met.status}"
        if row.names not in met.error:
            yield f"the error does not name {row.names}"
        if not re.search(row.says, met.error):
            yield f"the error does not say {row.says!r}"
    if met.words in row.read and (met.status or not re.search(row.says, met.stdout.decode("utf-8", "replace"))):
        yield f"it is not read as {row.says!r}: {met.status}"
    left = sorted(path.name for path in (place / "w").iterdir()) if met.status else []
    if left and not (row.stage and all(name.startswith(".o.surgery-") for name in left)):
        yield f"something is left: {left}"


def _harm(met: Met, place: Path, before: dict[str, tuple[int, ...]], most: int, seconds: float) -> Iterator[str]:
    if met.status not in ENDS:
        yield f"it ended with {met.status}"
    for what, raw in (("standard output", met.stdout), ("standard error", met.stderr)):
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            yield f"{what} is no text: {error}"
            continue
        if odd := sorted({character for character in text if not character.isprintable()} - {"\n"}):
            yield f"{what} has control characters: {odd}"
        if "Traceback (most recent" in text:
            yield f"{what} has a traceback: …{text[-1000:]}"
        if SECRET in text:
            yield f"{what} has what lies outside"
    if len(met.stdout) > SHOWN:
        yield f"the answer has {len(met.stdout)} bytes"
    if met.words.startswith("verify") and "--no-class" not in met.words:
        seconds, most = seconds * OF_A_CLASS[0], max(most, OF_A_CLASS[1])
    if met.seconds > seconds:
        yield f"it took {met.seconds:.2f} s"
    if met.memory > most:
        yield f"it took {met.memory >> 20} MB"
    if met.asked > ASKED:
        yield f"it asked for {met.asked >> 20} MB"
    yield from (f"outside, {one}" for one in met.outside)
    after = state(place)
    yield from (f"{name} was changed" for name in before.keys() | after if before.get(name) != after.get(name))
    for path in (place / "w").rglob("*"):
        if path.is_file() and SECRET.encode() in path.read_bytes():
            yield f"{path.name} has what lies outside"


def _message(met: Met) -> Iterator[str]:
    if met.status < 2 and not (met.error.startswith("error: ") and met.error.count("\nerror: ") == 0):
        yield f"there is not one error: {met.error[:300]}"
    if len(met.stderr) > MESSAGE:
        yield f"the error has {len(met.stderr)} bytes"


def outside(place: Path) -> Watch:
    """A watch on what lies outside of the folder."""
    return Watch(place / OUTSIDE)
