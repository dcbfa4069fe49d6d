"""The lock beside a destination: one writer at a time, and whoever is refused is told who that is.

Invariants. The file is an flock, which ends with its holder however that dies, so that neither a file that a dead
process left nor a process id that another one has by now holds anything. What is written in it says who holds it.
File systems of a network may not show an flock to other machines: a lock that another host wrote is respected, held
or not, until somebody removes its file.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from ..errors import DestinationError, printable
from ..files.opening import shut

LONGEST = 4096  # bytes that are read of what a lock says
SOON = 0.5  # seconds within which who has just taken a lock says who it is


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lock: a process, on a host, since a time."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {printable(self.host)}, since {printable(self.since)}"


def this_process() -> Holder:
    """This process, from now on."""
    return Holder(os.getpid(), socket.gethostname(), datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"))


@contextmanager
def locked(path: str, dest: str) -> Iterator[None]:
    """Hold the lock beside a destination. The file is removed at the end, so a locked file may have become
    another's. Raises DestinationError where another run holds it.
    """
    fd = _taken(path, dest)
    try:
        yield
    finally:
        try:
            with suppress(FileNotFoundError):
                os.unlink(path)
        finally:
            shut(fd)


def _taken(path: str, dest: str) -> int:
    """A descriptor of the file at `path`, locked, in which we are named."""
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            _lock(fd, path, dest)
            if _is_at(fd, path):
                _sign(fd, path, dest)
                return fd
        except BaseException:
            shut(fd)
            raise
        shut(fd)


def _lock(fd: int, path: str, dest: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            error.filename = path
            raise
        raise _held(dest, _awaited(fd), "wait for it, or choose another output") from error


def _is_at(fd: int, path: str) -> bool:
    """Whether the open file still has its name: its last holder may have removed it."""
    try:
        return os.stat(path, follow_symlinks=False).st_ino == os.fstat(fd).st_ino
    except FileNotFoundError:
        return False


def _sign(fd: int, path: str, dest: str) -> None:
    """The lock says that it is ours. Raises DestinationError where another host's process has signed it."""
    me = this_process()
    if (before := _holder(fd)) and before.host != me.host:
        raise _held(dest, before, f"wait for it, or choose another output; if that run is no more: rm {path}")
    with suppress(OSError):  # a full disk: it is locked all the same
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(asdict(me)).encode() + b"\n", 0)


def _held(dest: str, holder: Holder | None, tip: str) -> DestinationError:
    return DestinationError(
        "another run is writing there", where=[dest, *([f"it is {holder}"] if holder else [])], help=tip
    )


def _awaited(fd: int) -> Holder | None:
    """Who holds a lock, which may be about to say so."""
    until = time.monotonic() + SOON
    while (found := _holder(fd)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _holder(fd: int) -> Holder | None:
    """Who a lock says holds it; None where it says nothing that can be read."""
    try:
        told = json.loads(os.pread(fd, LONGEST, 0))
        return Holder(int(told["pid"]), str(told["host"]), str(told["since"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None
