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
from collections.abc import Iterator, Sequence
from contextlib import closing
from math import prod
from threading import Event

from ..errors import SourceChanged
from ..files.opening import regular
from ..lazy.runs import Dim, Piece
from ..lazy.tensor import File, Stored, Zeros
from .strided import LONG, extent, place, split

OPEN_FILES = 16
SPAN = 1 << 18  # bytes of the source that are read at once to pick short runs from
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
        status = os.fstat(fd)
        if alias is None and (status.st_size, status.st_mtime_ns) != (file.size, file.mtime_ns):
            os.close(fd)
            raise SourceChanged(
                "an input changed after it was opened",
                where=[file.path, f"{file.size} bytes then, {status.st_size} now"],
                help="let nothing write to the inputs, and run again",
            )
        return fd

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
        for piece in pieces:
            match piece.leaf:
                case Stored(_, _, file, offset):
                    at = offset + piece.at
                    self._scatter(file, at, piece.to, piece.dims, out, at + extent(piece.dims))
                case Zeros():
                    run = piece.run
                    for _, to in piece.runs():
                        out[to : to + run] = bytes(run)

    def _scatter(self, file: File, at: int, to: int, dims: tuple[Dim, ...], out: memoryview, until: int) -> None:
        """One piece: a single read where its source lies close together, else step by step along the widest dim."""
        run, outer = split(dims)
        if not outer:
            self.read(file, at, out[to : to + run], until)
            return
        dense = self._dense(file, dims, run)
        if dense and extent(dims) <= SPAN:
            self._pick(file, at, to, dims, out, until)
            return
        wide = max(outer, key=lambda d: d.at)
        rest = tuple(d for d in dims if d is not wide)
        fits = max(1, (SPAN - extent(rest)) // wide.at + 1) if dense else 1
        for k in range(0, wide.count, fits):
            part = (*rest, Dim(min(fits, wide.count - k), wide.at, wide.to))
            part = tuple(sorted((d for d in part if d.count > 1), key=lambda d: -d.to))
            self._scatter(file, at + k * wide.at, to + k * wide.to, part, out, until)

    def _dense(self, file: File, dims: tuple[Dim, ...], run: int) -> bool:
        """Whether all that lies between the runs is read along: short runs always, others where it costs less than
        to ask again.
        """
        useful = prod(d.count for d in dims)
        if run < LONG or useful == extent(dims):
            return True
        return run < CALL and useful * NEIGHBOURS >= extent(dims) and self.fd(file) is not None

    def _pick(self, file: File, at: int, to: int, dims: tuple[Dim, ...], out: memoryview, until: int) -> None:
        """Read the span of the source that holds the runs, and place them."""
        if len(self._span) < SPAN:
            self._span = bytearray(SPAN)
        span = memoryview(self._span)[: extent(dims)]
        self.read(file, at, span, until)
        place(span, dims, out, to)

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
        os.close(fd)


def content(file: File | bytes) -> bytes:
    """The whole of a small file. Raises SourceChanged where it is not what it was when it was opened."""
    if isinstance(file, bytes):
        return file
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


def _unreadable(error: OSError, where: str) -> SourceChanged:
    return SourceChanged(
        f"an input can no longer be read: {error.strerror}",
        where=[where],
        help="check the disk that it lies on, or fetch the file again",
    )
