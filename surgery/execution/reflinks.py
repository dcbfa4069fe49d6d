"""Blocks that an output shares with its inputs: nothing is copied until one side is written, and then for that side
alone, so that each file stays what it is whatever happens to the other.

Linux shares blocks on Btrfs, XFS and some others, inside one file system. What it can do is asked before work, by
sharing a block with an empty file in the stage. `auto` copies what cannot be shared, `always` refuses it before work,
and `never` leaves the kernel no say: its own copying may share, too.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice

from ..errors import DestinationError, SurgeryError, listed
from ..evaluation.read import Reader
from ..files.folder import absolute
from ..lazy.tensor import File
from ..planning.sharing import BLOCK, inner, is_made, shareable
from ..planning.steps import ShardPlan
from .writing_inside import Inside

MODES = ("auto", "always", "never")
_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D
_PROBE = ".surgery-shared"
# What says that blocks cannot be shared, here or at all; anything else, such as a full disk, is an error.
NO_SHARING = (
    errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF,
    errno.EISDIR, errno.ETXTBSY, errno.EINTR, errno.EIO,
)  # fmt: skip


def share_file(source: int, fd: int) -> None:
    """The open file `fd` holds what `source` does, in the same blocks. Raises OSError."""
    fcntl.ioctl(fd, _FICLONE, source)


def share_range(source: int, at: int, fd: int, to: int, nbytes: int) -> None:
    """Bytes [to, to + nbytes) of `fd` are those of `source` from `at` on, in the same blocks. Raises OSError."""
    fcntl.ioctl(fd, _FICLONERANGE, struct.pack("qQQQ", source, at, nbytes, to))


def check_mode(mode: str) -> None:
    """Raise SurgeryError for what is no way to share."""
    if mode not in MODES:
        raise SurgeryError(
            f"`{mode}` is no way to share blocks", help=f"pass --reflink {', '.join(MODES[:-1])} or never"
        )


@dataclass(frozen=True, slots=True)
class Ability:
    """How blocks of one file system can be shared with the stage: in units of `block` bytes; 0: not, and `why`."""

    block: int
    why: str = ""


class Sharing:
    """What a run shares: counted from any thread. By `st_dev` of the inputs, how."""

    def __init__(self, mode: str = "auto", abilities: dict[int, Ability] | None = None) -> None:
        self.mode, self.abilities = mode, abilities or {}
        self.nbytes, self._refused = 0, dict[str, int]()  # bytes that were to be shared, by why they were not
        self._lock = threading.Lock()

    @property
    def wanted(self) -> bool:
        """Whether there is an input of which blocks are to be shared."""
        return self.mode != "never" and any(known.block for known in self.abilities.values())

    def can(self, source: int) -> int:
        """The unit in which blocks of an open input are to be shared; 0: not at all."""
        known = self.abilities.get(os.fstat(source).st_dev)
        return known.block if known and self.mode != "never" else 0

    def in_kernel(self, source: int) -> bool:
        """Whether the kernel may copy: it may share where it can."""
        known = self.abilities.get(os.fstat(source).st_dev)
        return self.mode != "never" or not (known and known.block)

    def left(self, source: int | None, file: File, at: int, fd: int, to: int, nbytes: int) -> Iterator[tuple[int, int]]:
        """Share the whole blocks of a run; where what is left to be copied begins and stops in it."""
        block = self.can(source) if source is not None and not is_made(file) else 0
        begin, stop = inner(at, to, nbytes, block) if block else (0, 0)
        if source is None or begin == stop or not self._shared(source, at + begin, fd, to + begin, stop - begin):
            yield 0, nbytes
            return
        yield from ((a, b) for a, b in ((0, begin), (stop, nbytes)) if a < b)

    def _shared(self, source: int, at: int, fd: int, to: int, nbytes: int) -> bool:
        try:
            share_range(source, at, fd, to, nbytes)
        except OSError as error:
            return self._was_refused(error, nbytes)
        self._count(nbytes)
        return True

    def whole(self, source: int, fd: int, nbytes: int) -> bool:
        """Whether the empty file `fd` now is the open input, in the same blocks."""
        if not (nbytes and self.can(source)):
            return False
        try:
            share_file(source, fd)
        except OSError as error:
            return self._was_refused(error, nbytes)
        self._count(nbytes)
        return True

    @property
    def done(self) -> tuple[int, dict[str, int]]:
        """Bytes that were shared, and those that were not, by why."""
        return self.nbytes, self._refused

    def add(self, nbytes: int, refused: dict[str, int]) -> None:
        """Count what was `done` on another machine."""
        self._count(nbytes)
        with self._lock:
            self._refused = {why: self._refused.get(why, 0) + refused.get(why, 0) for why in self._refused | refused}

    def _count(self, nbytes: int) -> None:
        with self._lock:
            self.nbytes += nbytes

    def _was_refused(self, error: OSError, nbytes: int) -> bool:
        """False; raises what is no refusal, and a refusal where all is to be shared."""
        if error.errno not in NO_SHARING:
            raise error
        if self.mode == "always":
            raise DestinationError(
                f"the file system refused to share {nbytes} bytes: {error.strerror}",
                help="--reflink auto copies what cannot be shared",
            )
        with self._lock:
            why = error.strerror or str(error)
            self._refused[why] = self._refused.get(why, 0) + nbytes
        return False

    def notes(self) -> list[str]:
        """What the report says of it."""
        said = [f"shared with the inputs, block by block: {self.nbytes} bytes; each is copied once a side is written"]
        refused = [f"{nbytes} bytes: {why}" for why, nbytes in self._refused.items()]
        return (said if self.nbytes else []) + (
            [f"copied, since the file system would not share it: {', '.join(listed(refused))}"] if refused else []
        )


def sharing_of(mode: str, files: Iterable[File], inside: Inside) -> Sharing:
    """How files written in `inside` are to share blocks with these inputs. Each file system is asked once, by its
    largest input.
    """
    check_mode(mode)
    largest: dict[int, File] = {}
    for file in files:
        if (device := _device(file)) is not None and (device not in largest or file.size > largest[device].size):
            largest[device] = file
    abilities = {device: _ability(file, inside) for device, file in largest.items()}
    return Sharing(mode, abilities)


def _device(file: File) -> int | None:
    """The file system of an input that may be shared; None of what is empty, made, elsewhere, or gone."""
    if file.remote or is_made(file) or not file.size:
        return None
    with suppress(OSError):  # what cannot be read is said where it is read
        return os.stat(file.path).st_dev
    return None


def _unnamed(inside: Inside) -> int:
    """A new file that nothing names, or soon, where the file system has no such files."""
    try:
        return os.open(".", getattr(os, "O_TMPFILE", 0) | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=inside.fd)
    except OSError:
        fd = inside.create(_PROBE)
        inside.remove(_PROBE)
        return fd


def _ability(file: File, inside: Inside) -> Ability:
    """Whether a block of the input can be one of a new file, too: the smallest that is tried."""
    here = os.fstatvfs(inside.fd).f_bsize or BLOCK
    why = ""
    with closing(Reader()) as reader:
        source = reader.fd(file)
        assert source is not None
        for block in sorted({BLOCK, max(BLOCK, here)}):
            fd = _unnamed(inside)
            try:
                share_file(source, fd) if file.size < block else share_range(source, 0, fd, 0, block)
                return Ability(block)
            except OSError as error:
                if error.errno not in NO_SHARING:
                    raise
                why = error.strerror or str(error)
            finally:
                os.close(fd)
    return Ability(0, why)


def check_shareable(sharing: Sharing, shards: Sequence[ShardPlan], files: Iterable[File], place: str) -> None:
    """Raise DestinationError where all is to be shared and some cannot be: says which file system, or how much."""
    if sharing.mode != "always":
        return
    for file in files:
        known = sharing.abilities.get(-1 if (device := _device(file)) is None else device)
        if known and not known.block:
            raise DestinationError(
                f"files at the destination cannot share blocks with an input: {known.why}",
                where=[f"{place} ({kind_of(place)})", f"{file.path} ({kind_of(file.path)})"],
                help="both must lie on one Btrfs or XFS; --reflink auto copies what cannot be shared",
            )
    block = max((known.block for known in sharing.abilities.values()), default=BLOCK)
    found = [(shard.name, shareable([shard], block).apart) for shard in shards]
    if apart := sum(nbytes for _, nbytes in found):
        raise DestinationError(
            f"{apart} bytes that stay as they are cannot be shared: they lie elsewhere within a block of {block} bytes"
            " than in their input, come in short runs, or from the Hub",
            where=listed([f"{name}: {nbytes} bytes" for name, nbytes in found if nbytes]),
            help=f"--align {'auto' if block == BLOCK else block} chooses where the data begins so that most can; "
            "--reflink auto copies the rest",
        )


def saved(sharing: Sharing, shards: Sequence[ShardPlan]) -> int:
    """Bytes of disk that shards still to be made will not take, since they are shared; none where an input cannot."""
    blocks = {known.block for known in sharing.abilities.values()}
    if sharing.mode == "never" or not blocks or 0 in blocks:
        return 0
    return shareable(shards, max(blocks)).shared


def kind_of(path: str) -> str:
    """The kind of file system that a path lies on, as the system's table of mounts has it."""
    path = os.path.realpath(absolute(path))
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
            lines = [line.split() for line in stream]
    except OSError:
        return "its kind is not known"
    mounts = [(_plain(words[4]), words[words.index("-") + 1]) for words in lines if "-" in words]
    over = [(len(at), i, kind) for i, (at, kind) in enumerate(mounts) if f"{path}/".startswith(f"{at.rstrip('/')}/")]
    return max(over)[2] if over else "its kind is not known"


def _plain(escaped: str) -> str:
    r"""A path as the table of mounts writes it: \040 is a space."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), escaped)


_EXTENT = struct.Struct("=QQQQQIIII")
_FIEMAP, _SYNC, _SHARED, _LAST, _AT_ONCE = 0xC020660B, 1, 0x2000, 1, 256


def extents(fd: int) -> Iterator[tuple[int, int, bool]]:
    """(begin, bytes, whether shared) of each extent of an open file. Raises OSError where that is not told."""
    at = 0
    while True:
        buffer = bytearray(32 + _AT_ONCE * _EXTENT.size)
        struct.pack_into("=QQIIII", buffer, 0, at, (1 << 64) - 1 - at, _SYNC, 0, _AT_ONCE, 0)
        fcntl.ioctl(fd, _FIEMAP, buffer)
        count = struct.unpack_from("=I", buffer, 20)[0]
        flags = _LAST
        for begin, _, nbytes, _, _, flags, *_ in islice(_EXTENT.iter_unpack(buffer[32:]), count):
            yield begin, nbytes, bool(flags & _SHARED)
            at = begin + nbytes
        if flags & _LAST or not count:
            return


def shared_in(path: str) -> int | None:
    """Bytes of a file that lie in blocks of others, too, edges of blocks included; None where that is not told."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return sum(nbytes for _, nbytes, shared in extents(fd) if shared)
    except OSError:
        return None
    finally:
        os.close(fd)


def made_so(sharing: Sharing, shard: ShardPlan, path: str) -> bool:
    """Whether a finished shard of a broken run shares what this run is to share: nothing, or all that can be."""
    match sharing.mode:
        case "never":
            return not shared_in(path)
        case "always":
            return (shared_in(path) or 0) >= shareable([shard]).shared
    return True
