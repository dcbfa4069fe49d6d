"""Reading: bytes of opened files, and movement gathered into a buffer.

A `Reader` belongs to one worker. A local file is read only while it is what it was when it was opened (size and
time), and a short read is an error. A file on the Hub is pinned to a commit: it is read from the local cache where
it is there, else by ranges, of which a small one that follows another closely is widened. `gather` executes pieces
without torch: long runs are read straight into place, short ones through a span of the source that covers many of
them (`strided.py`).
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from threading import Event

from ..errors import SourceChanged
from ..files.opening import regular, shut
from ..files.small import check_small
from ..lazy.runs import Piece
from ..lazy.tensor import File, Stored, Zeros
from .picks import Pick, by_widest, in_steps, neighbours, reach
from .strided import LONG, place

OPEN_FILES = 16
SPAN = 1 << 19  # bytes of the source that are read at once to pick short runs from
SLACK = 8  # bytes behind them that belong to a word of which the last one may be a part
CALL = 4096  # bytes that are read from a file here in the time that a call takes: shorter runs are not read one by one,
NEIGHBOURS = 4  # unless more than so many times as much would be read
PIECE = 1 << 20  # bytes of a file that are held at once where it is read in order
AHEAD = 4 << 20  # bytes of a file on the Hub that one request asks for, where it would be asked for less and soon again
NEAR = 1 << 16  # bytes between two reads from the Hub that are cheaper to fetch than to ask again


class Reader:
    """Positional reads from the files that a plan names; `aliases` gives the real place of files made by the run."""

    def __init__(self, aliases: dict[str, str] | None = None, ahead: int = AHEAD) -> None:
        self._aliases = aliases or {}
        self._open: OrderedDict[str, int | None] = OrderedDict()
        self._span = bytearray(0)
        self._window = _Window(min(ahead, AHEAD))
        self.stop = Event()  # set from any thread, it ends a read from the Hub that is under way

    def fd(self, file: File) -> int | None:
        """A descriptor of `file`, valid until the next call; None where it is read from the Hub by ranges."""
        if file.path in self._open:
            self._open.move_to_end(file.path)
            return self._open[file.path]
        if len(self._open) >= OPEN_FILES:
            _close(self._open.popitem(last=False)[1])
        self._open[file.path] = fd = self._copy_of(file) if file.remote else self._opened(file)
        return fd

    def _copy_of(self, file: File) -> int | None:
        from ..hub.remote import local_copy

        return local_copy(file, self.stop)

    def _opened(self, file: File) -> int:
        alias = self._aliases.get(file.path)
        try:
            fd = regular(alias or file.path)
        except OSError as error:
            raise _unreadable(error, file.path) from error
        try:
            status = os.fstat(fd)
        except OSError as error:
            shut(fd)
            raise _unreadable(error, file.path) from error
        if alias is None and (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            shut(fd)
            raise _changed(file, f"{file.size} bytes then, {status.st_size} now")
        return fd

    def check(self, file: File) -> None:
        """A local file is what it was when it was opened: size and time, and, of a shard, the header. Raises
        SourceChanged.
        """
        self.fd(file)
        if file.whole or not file.header:
            return
        begin = bytearray(min(8, file.size))
        self.read(file, 0, memoryview(begin))
        header = bytearray(max(0, min(int.from_bytes(begin, "little"), file.size - 8)))
        self.read(file, 8, memoryview(header))
        if hashlib.sha256(header).hexdigest() != file.header:
            raise _changed(file, "its header is another one now, though its size and time are the same")

    def read(self, file: File, at: int, out: memoryview, until: int = 0) -> None:
        """Fill `out` with the bytes from `at` on. More up to `until` may be fetched from the Hub, for the reads that
        follow.
        """
        fd, done = self.fd(file), 0
        if fd is None:
            self._window.read(self, file, at, out, until)
            return
        while done < len(out):
            try:
                got = os.preadv(fd, [out[done:]], at + done)
            except OSError as error:
                raise _unreadable(error, f"{file.path}: byte {at + done}") from error
            if not got:
                raise SourceChanged("an input ended early", where=[f"{file.path}: byte {at + done}"], help="run again")
            done += got

    def stream(self, file: File, at: int, nbytes: int) -> Iterator[memoryview]:
        """The bytes from `at` on, in order, in parts of at most `PIECE`: from the Hub by one request. Each is valid
        until the next.
        """
        if self.fd(file) is None:
            from ..hub.remote import fetch

            for part in fetch(file, at, at + nbytes, self.stop):
                yield memoryview(part)
            return
        buffer = memoryview(bytearray(min(PIECE, nbytes)))
        for done in range(0, nbytes, PIECE):
            piece = buffer[: min(PIECE, nbytes - done)]
            self.read(file, at + done, piece)
            yield piece

    def gather(self, pieces: Sequence[Piece], out: memoryview) -> None:
        """Put the bytes that `pieces` (in bytes, of `Stored` and `Zeros` leaves) name into `out`."""
        self.gather_all([(pieces, out)])

    def gather_all(self, wanted: Iterable[tuple[Sequence[Piece], memoryview]]) -> None:
        """The same for several, each with its own `out`: what lies together is read once for all."""
        picks: dict[File, list[Pick]] = {}
        for pieces, out in wanted:
            for piece in pieces:
                match piece.leaf:
                    case Stored(_, _, file, offset):
                        picks.setdefault(file, []).append(Pick(offset + piece.at, piece.to, piece.dims, out))
                    case Zeros():
                        run = piece.run
                        for _, to in piece.runs():
                            out[to : to + run] = bytes(run)
        for file, found in picks.items():
            for near in neighbours(found):
                self._scatter(file, near, reach(near)[1])

    def _scatter(self, file: File, picks: Sequence[Pick], until: int) -> None:
        """Picks that lie together: one read where they lie close, else step by step along their widest dim."""
        start, stop = reach(picks)
        dense = self._dense(file, picks, stop - start)
        if len(picks) == 1 and not picks[0].outer:
            self._straight(file, picks[0], until)
        elif dense and stop - start <= SPAN:
            self._pick(file, picks, until)
        else:
            for alike in by_widest(picks):
                self._along(file, alike, until, dense=dense)

    def _along(self, file: File, picks: Sequence[Pick], until: int, *, dense: bool) -> None:
        """Picks whose widest dims are alike, as many of its steps at once as a span holds."""
        if not picks[0].outer:
            for pick in picks:
                self._straight(file, pick, until)
            return
        for part in in_steps(picks, SPAN if dense else 0):
            self._scatter(file, part, until)

    def _straight(self, file: File, pick: Pick, until: int) -> None:
        self.read(file, pick.at, pick.out[pick.to : pick.to + pick.run], until)

    def _dense(self, file: File, picks: Sequence[Pick], extent: int) -> bool:
        """Whether all that lies between the runs is read along: short runs always, others where it costs less than
        to ask again.
        """
        useful, run = sum(pick.size for pick in picks), min(pick.run for pick in picks)
        if run < LONG or useful >= extent:
            return True
        return run < CALL and useful * NEIGHBOURS >= extent and self.fd(file) is not None

    def _pick(self, file: File, picks: Sequence[Pick], until: int) -> None:
        """Read the span of the source that holds the runs, and place them."""
        if not self._span:
            self._span = bytearray(SPAN + SLACK)
        start, stop = reach(picks)
        span = memoryview(self._span)
        self.read(file, start, span[: stop - start], until)
        for pick in picks:
            place(span, pick.at - start, pick.dims, pick.out, pick.to)

    def close(self) -> None:
        """Close every file."""
        while self._open:
            _close(self._open.popitem()[1])
        self._window.forget()


class _Window:
    """The bytes of a file on the Hub that were fetched last.

    A small read that follows the one before closely fetches more than it needs, each time twice as much, up to
    `most` bytes: what is fetched in vain is less than what was read.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.forget()

    def forget(self) -> None:
        """Hold nothing."""
        self.holds, self.start, self.data = "", 0, bytearray()  # the file that the bytes here are of, and from where
        self.last, self.end, self.size = (
            "",
            0,
            0,
        )  # the file of the last read, where it ended, and how much was fetched for it

    def read(self, reader: Reader, file: File, at: int, out: memoryview, until: int) -> None:
        """Fill `out` with the bytes from `at` on, from what is here and from the Hub."""
        held = self.holds == file.path and self.start <= at < self.start + len(self.data)
        done = min(len(out), self.start + len(self.data) - at) if held else 0
        out[:done] = memoryview(self.data)[at - self.start : at - self.start + done]
        if done < len(out):
            self._fetch(reader, file, at + done, out[done:], until)
        self.last, self.end = file.path, at + len(out)

    def _fetch(self, reader: Reader, file: File, at: int, out: memoryview, until: int) -> None:
        follows = self.last == file.path and 0 <= at - self.end <= NEAR
        self.size = min(2 * max(self.size, len(out)), self.most) if follows else len(out)
        stop = min(at + self.size, until)
        if stop <= at + len(out):
            _filled(out, reader.stream(file, at, len(out)))
            return
        data = bytearray(stop - at)
        _filled(memoryview(data), reader.stream(file, at, stop - at))
        self.holds, self.start, self.data = file.path, at, data
        out[:] = memoryview(data)[: len(out)]


def _filled(out: memoryview, parts: Iterator[memoryview]) -> None:
    done = 0
    for part in parts:
        out[done : done + len(part)] = part
        done += len(part)


def _close(fd: int | None) -> None:
    if fd is not None:
        shut(fd)


def content(file: File | bytes) -> bytes:
    """The whole of a small file. Raises SourceChanged where it is not what it was when it was opened."""
    if isinstance(file, bytes):
        return file
    check_small(file.path, file.size)
    if file.remote:
        from ..hub.remote import read_whole

        return read_whole(file)
    with closing(Reader()) as reader:
        return b"".join(map(bytes, reader.stream(file, 0, file.size)))


def sha256(file: File | bytes) -> str:
    """SHA-256 of the whole content. Of a file on the Hub that the Hub says it of, nothing is read."""
    return _hashed(file, hashlib.sha256())


def git_hash(file: File | bytes) -> str:
    """The hash by which git knows the content."""
    return _hashed(file, hashlib.sha1(b"blob %d\0" % _size(file)))


def same_content(a: File | bytes, b: File | bytes) -> bool:
    """Whether two files are equal, byte for byte. What lies on the Hub is told by its hash, and not fetched."""
    if _size(a) != _size(b):
        return False
    for one, other in ((a, b), (b, a)):
        if isinstance(one, File) and one.remote and one.digest:
            return one.digest == (git_hash(other) if len(one.digest) == 40 else sha256(other))
    return sha256(a) == sha256(b)


def _size(file: File | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.size


def _hashed(file: File | bytes, digest: hashlib._Hash) -> str:
    """The hash of the content: what the Hub says of it, if it says this one."""
    if isinstance(file, File) and file.remote and len(file.digest) == 2 * digest.digest_size:
        return file.digest
    with closing(Reader()) as reader:
        for part in [file] if isinstance(file, bytes) else reader.stream(file, 0, file.size):
            digest.update(part)
    return digest.hexdigest()


def _changed(file: File, how: str) -> SourceChanged:
    return SourceChanged(
        "an input changed after it was opened",
        where=[file.path, how],
        help="let nothing write to the inputs, and run again",
    )


def _unreadable(error: OSError, where: str) -> SourceChanged:
    return SourceChanged(
        f"an input can no longer be read: {error.strerror}",
        where=[where],
        help="check the disk that it lies on, or fetch the file again",
    )
