"""Rows of a matrix in any order: those that follow each other are read at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..lazy.tensor import Concat, Picked, Tensor

if TYPE_CHECKING:
    from .workspace import Workspace


def fill_picked(picked: Picked, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop)."""
    item = picked.dtype.bits // 8
    parts = picked.of.parts if isinstance(picked.of, Concat) and picked.of.axis == 0 else (picked.of,)
    for at, first, count in _runs(picked, start, stop):
        for part, begin, begun, many in _within(parts, first, count):
            low = (at - start + begun) * item
            work.fill(part, begin, begin + many, out[low : low + many * item])


def _runs(picked: Picked, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """(element, its place in the matrix, how many follow it there) for the elements [start, stop)."""
    columns, index, at = picked.shape[1], memoryview(picked.index).cast("I"), start
    while at < stop:
        row, inside = divmod(at, columns)
        end = row + 1
        while end * columns < stop and index[end] == index[end - 1] + 1:
            end += 1
        count = min(stop, end * columns) - at
        yield at, index[row] * columns + inside, count
        at += count


def _within(parts: tuple[Tensor, ...], first: int, count: int) -> Iterator[tuple[Tensor, int, int, int]]:
    """(part, its element, how many before, how many) for `count` elements of the parts one after another."""
    at = 0
    for part in parts:
        low, high = max(first, at), min(first + count, at + part.size)
        if low < high:
            yield part, low - at, low - first, high - low
        at += part.size
