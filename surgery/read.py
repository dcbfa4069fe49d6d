"""Reading: bytes of opened files, and movement gathered into a buffer.

A `Reader` belongs to one worker. A file is read only while it is what it was when it was opened (size and time), and a
short read is an error. `gather` executes pieces without torch: long runs are read straight into place, short ones through
a span of the source that covers many of them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from typing import Literal

from .errors import SourceChanged
from .runs import Dim, Piece
from .tensor import File, Stored, Zeros

OPEN_FILES = 16
SPAN = 1 << 18  # bytes of the source that are read at once to pick short runs from
LONG = 1024  # bytes from which a run gets a read of its own: no byte is read that is not needed
_FORMATS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Reader:
    """Positional reads from the files that a plan names; `aliases` gives the real place of files made by the run."""

    def __init__(self, aliases: dict[str, str] | None = None) -> None:
        self._aliases = aliases or {}
        self._open: OrderedDict[str, int] = OrderedDict()
        self._span = bytearray(0)

    def fd(self, file: File) -> int:
        """A descriptor of `file`, valid until the next call."""
        found = self._open.get(file.path)
        if found is not None:
            self._open.move_to_end(file.path)
            return found
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        alias = self._aliases.get(file.path)
        try:
            fd = os.open(alias or file.path, os.O_RDONLY | os.O_CLOEXEC)
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
        self._open[file.path] = fd
        return fd

    def read(self, file: File, at: int, out: memoryview) -> None:
        """Fill `out` with the bytes from `at` on."""
        fd, done = self.fd(file), 0
        while done < len(out):
            try:
                got = os.preadv(fd, [out[done:]], at + done)
            except OSError as error:
                raise _unreadable(error, f"{file.path}: byte {at + done}") from error
            if not got:
                raise SourceChanged("an input ended early", where=[f"{file.path}: byte {at + done}"], help="run again")
            done += got

    def gather(self, pieces: Sequence[Piece], out: memoryview) -> None:
        """Put the bytes that `pieces` (in bytes, of `Stored` and `Zeros` leaves) name into `out`."""
        for piece in pieces:
            match piece.leaf:
                case Stored(_, _, file, offset):
                    self._scatter(file, offset + piece.at, piece.to, piece.dims, out)
                case Zeros():
                    run = piece.run
                    for _, to in piece.runs():
                        out[to : to + run] = bytes(run)

    def _scatter(self, file: File, at: int, to: int, dims: tuple[Dim, ...], out: memoryview) -> None:
        """One piece: a single read where its source lies close together, else step by step along the widest dim."""
        if not dims or (len(dims) == 1 and dims[0].at == dims[0].to == 1):
            count = dims[0].count if dims else 1
            self.read(file, at, out[to : to + count])
            return
        extent = 1 + sum((d.count - 1) * d.at for d in dims)
        useful = 1
        for d in dims:
            useful *= d.count
        run = dims[-1].count if dims[-1].at == dims[-1].to == 1 else 1
        if extent <= SPAN and (extent == useful or run < LONG):
            if len(self._span) < SPAN:
                self._span = bytearray(SPAN)
            span = memoryview(self._span)[:extent]
            self.read(file, at, span)
            _place(span, dims, out, to)
            return
        wide = max(dims, key=lambda d: (d.count > 1) * d.at)
        rest = tuple(d for d in dims if d is not wide)
        fits = max(1, (SPAN - (1 + sum((d.count - 1) * d.at for d in rest))) // wide.at + 1) if run < LONG else 1
        for k in range(0, wide.count, fits):
            part = (*rest, Dim(min(fits, wide.count - k), wide.at, wide.to))
            part = tuple(sorted((d for d in part if d.count > 1), key=lambda d: -d.to))
            self._scatter(file, at + k * wide.at, to + k * wide.to, part, out)

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1])


def _unreadable(error: OSError, where: str) -> SourceChanged:
    return SourceChanged(
        f"an input can no longer be read: {error.strerror}", where=[where], help="check the disk that it lies on, or fetch the file again"
    )


def _place(span: memoryview, dims: tuple[Dim, ...], out: memoryview, to: int) -> None:
    """Copy the elements that `dims` pick from `span` to their places in `out`.

    The innermost dim is a run of bytes. Of the others the longest goes by strided slices of machine words where the run
    is one word, so that the number of steps in Python is that of the shorter dims.
    """
    run = dims[-1].count if dims[-1].at == dims[-1].to == 1 else 1
    outer = list(dims[:-1] if run > 1 else dims)
    if not outer:
        out[to : to + run] = span[:run]
        return
    inner = max(outer, key=lambda d: d.count)
    words = _FORMATS.get(run)
    aligned = all(n % run == 0 for d in outer for n in (d.at, d.to)) and (to % run == 0)
    if words is None or not aligned:
        for index in product(*(range(d.count) for d in outer)):
            a = sum(i * d.at for i, d in zip(index, outer, strict=True))
            b = to + sum(i * d.to for i, d in zip(index, outer, strict=True))
            out[b : b + run] = span[a : a + run]
        return
    outer.remove(inner)
    src = span[: len(span) // run * run].cast(words)
    dst = out[: len(out) // run * run].cast(words)
    for index in product(*(range(d.count) for d in outer)):
        a = sum(i * d.at for i, d in zip(index, outer, strict=True)) // run
        b = (to + sum(i * d.to for i, d in zip(index, outer, strict=True))) // run
        last_a, last_b = a + (inner.count - 1) * inner.at // run + 1, b + (inner.count - 1) * inner.to // run + 1
        dst[b : last_b : inner.to // run] = src[a : last_a : inner.at // run]
