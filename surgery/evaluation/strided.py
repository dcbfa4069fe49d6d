"""Bytes from their places in one buffer to their places in another, by strides.

Long runs go by slices. Short ones go by numpy, which is loaded only then: one copy takes all dims, in blocks whose
lines of cache are read to the end before they are lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

from ..lazy.runs import Dim

LONG = 1024  # bytes from which a run is worth a step of its own
BLOCK = 128  # elements of a column that are picked up at once: one line of cache each
_WORDS = {1: "u1", 2: "u2", 4: "u4", 8: "u8"}


def extent(dims: Sequence[Dim]) -> int:
    """From the first to the last byte that `dims` pick."""
    return 1 + sum((d.count - 1) * d.at for d in dims)


def split(dims: Sequence[Dim]) -> tuple[int, tuple[Dim, ...]]:
    """The bytes that lie together on both sides, and the dims of such runs."""
    if dims and dims[-1].at == dims[-1].to == 1:
        return dims[-1].count, tuple(dims[:-1])
    return 1, tuple(dims)


def starts(dims: Sequence[Dim]) -> Iterator[tuple[int, int]]:
    """(at, to) of each run."""
    each = [list(zip(range(0, d.count * d.at, d.at), range(0, d.count * d.to, d.to), strict=True)) for d in dims]
    if len(each) == 1:
        return iter(each[0])
    return ((sum(a for a, _ in index), sum(b for _, b in index)) for index in product(*each))


def place(span: memoryview, dims: Sequence[Dim], out: memoryview, to: int) -> None:
    """Copy the bytes that `dims` pick from `span` to their places in `out`, from `to` on."""
    run, outer = split(dims)
    if run >= LONG or not outer:
        for a, b in starts(outer):
            out[to + b : to + b + run] = span[a : a + run]
        return
    import numpy as np

    kind = _WORDS.get(run, f"V{run}")
    shape = [d.count for d in outer]
    source = np.ndarray(shape, kind, span, 0, [d.at for d in outer])
    target = np.ndarray(shape, kind, out, to, [d.to for d in outer])
    for part in _blocks(outer):
        np.copyto(target[part], source[part])


def _blocks(dims: Sequence[Dim]) -> Iterator[tuple[Any, ...]]:
    """All of it, or blocks of its last dim where that strides in the source over what another dim reads in order."""
    last = dims[-1]
    turned = any(d.at < last.at for d in dims)
    step = BLOCK if turned else last.count
    return ((..., slice(i, i + step)) for i in range(0, last.count, step))
