"""Only regular files are opened, and links to them: a FIFO waits for its other end, a device answers with what it
likes.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from ..errors import FormatError

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def regular(path: str, flags: int = os.O_RDONLY) -> int:
    """A descriptor of the regular file at `path`, or where a link there leads. Never waits; an `opener` for `open`.

    Raises OSError for all that is no regular file: asked before it is opened, and again of what was opened.
    """
    regular_status(path)
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _check(os.fstat(fd), path)
    except OSError:
        os.close(fd)
        raise
    return fd


def shut(fd: int) -> None:
    """What was read, or is durable, or of no use, is closed. Whatever the system answers its number is free then, and
    may be another thread's: it is never closed twice.
    """
    with suppress(OSError):
        os.close(fd)


def regular_status(path: str) -> os.stat_result:
    """What the system says of the regular file at `path`, or where a link there leads. Raises OSError as `regular`
    does.
    """
    status = os.stat(path)
    _check(status, path)
    return status


def unreadable_file(error: OSError, where: str) -> FormatError:
    """The error about a file that the system does not let read."""
    tip = "see to the disk and the permissions, or move the file away, and run again"
    return FormatError(f"cannot read the file: {error.strerror}", where=[where], help=tip)


def _check(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", path)
