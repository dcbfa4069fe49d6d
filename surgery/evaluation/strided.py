"""Bytes from their places in one buffer to their places in another, by strides.

Long runs go by slices. Short ones go by numpy, which is loaded only then: one copy takes all dims, or two where
elements change their order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from math import gcd
from typing import Any

from ..lazy.runs import Dim

LONG = 1024  # bytes from which a run is worth a step of its own
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


def place(span: memoryview, at: int, dims: Sequence[Dim], out: memoryview, to: int) -> None:
    """Copy the bytes that `dims` pick from `span`, from `at` on, to their places in `out`, from `to` on."""
    run, outer = split(dims)
    if run >= LONG or not outer:
        for a, b in starts(outer):
            out[to + b : to + b + run] = span[at + a : at + a + run]
        return
    if run in _WORDS and is_turned(outer):
        _turn(span, at, run, outer, out, to)
        return
    kind, last = _WORDS.get(run, f"V{run}"), outer[-1]
    ends = at + extent(dims) - run + last.at
    word = last.at if _begins_words(run, last) and ends <= len(span) else run
    source = _view(span, _WORDS.get(word, kind), at, [(d.count, d.at) for d in outer])
    _copy(_view(out, kind, to, [(d.count, d.to) for d in outer]), source)


def _begins_words(run: int, dim: Dim) -> bool:
    """Whether elements are the first of words, so that each is what remains of its word where that is narrowed: this
    takes a quarter of the time of a copy by strides.
    """
    return run in _WORDS and run < dim.at and dim.at in _WORDS and dim.to == run and sys.byteorder == "little"


def is_turned(dims: Sequence[Dim]) -> bool:
    """Whether places follow each other in another order than in the source."""
    return any(a.at < b.at for a, b in pairwise(dims))


def _view(data: memoryview, kind: str, first: int, dims: Sequence[tuple[int, int]]) -> Any:
    """Words of `data` from byte `first` on, by (count, stride)."""
    import numpy as np

    return np.ndarray([count for count, _ in dims], kind, data, first, [stride for _, stride in dims])


def _copy(target: Any, source: Any) -> None:
    import numpy as np

    np.copyto(target, source, casting="unsafe")


def _turn(span: memoryview, at: int, run: int, dims: Sequence[Dim], out: memoryview, to: int) -> None:
    """The same where neighbours in `out` lie far apart: they are put together into words of 8 bytes first, and those
    are turned.
    """
    import numpy as np

    *others, last = dims
    joined = gcd(8 // run, last.count) if last.to == run else 1
    words = np.empty((last.count // joined, *(d.count for d in others), joined), _WORDS[run])
    along = [(last.count // joined, joined * last.at), *((d.count, d.at) for d in others)]
    for i in range(joined):
        _copy(words[..., i], _view(span, _WORDS[run], at + i * last.at, along))
    places = [(last.count // joined, joined * last.to), *((d.count, d.to) for d in others)]
    _copy(_view(out, _WORDS[joined * run], to, places), words.view(_WORDS[joined * run])[..., 0])
