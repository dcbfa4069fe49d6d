"""Tensors of a shard that pick their elements from the same bytes, to be made side by side: each byte is read once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from math import prod

from ..lazy.runs import lower
from ..lazy.tensor import Restored, Stored, Tensor, Zeros, children, is_computed
from .steps import Fill, Part

ROW = 1 << 20  # bytes of a row of all of them, up to which they are cut along rows


@dataclass(frozen=True, slots=True)
class Together:
    """Rows [start, stop) of the `rows` of each of `fills`: rows of the axes that all have, of whole bytes."""

    fills: tuple[Fill, ...]
    rows: int
    start: int
    stop: int

    @property
    def row(self) -> int:
        """Bytes of a row of all of them."""
        return sum(fill.tensor.nbytes for fill in self.fills) // self.rows

    def cut(self, nbytes: int) -> Iterator[Together]:
        """The same in parts of at most `nbytes`, or of a row."""
        step = max(1, nbytes // self.row)
        for start in range(self.start, self.stop, step):
            yield replace(self, start=start, stop=min(start + step, self.stop))

    def each(self) -> Iterator[Fill]:
        """What of each tensor these rows are."""
        for fill in self.fills:
            elements, nbytes = fill.tensor.size // self.rows, fill.tensor.nbytes // self.rows
            yield replace(
                fill, start=self.start * elements, stop=self.stop * elements, to=fill.to + self.start * nbytes
            )


def together(parts: Iterable[Part]) -> Iterator[Part | Together]:
    """The parts of a shard; at the end those that pick from one stored tensor, together where they reach over the same
    bytes.
    """
    picked: dict[Stored, list[Fill]] = {}
    for part in parts:
        leaf = picked_from(part.tensor) if isinstance(part, Fill) and not part.kept else None
        if leaf is not None and isinstance(part, Fill):
            picked.setdefault(leaf, []).append(part)
        else:
            yield part
    for fills in picked.values():
        for near in _overlapping(fills):
            yield from _joined(near)


def picked_from(tensor: Tensor) -> Stored | None:
    """The one stored tensor that all elements are moved from."""
    leaves = [] if is_computed(tensor) else [*{*_leaves(tensor)}]
    return leaves[0] if len(leaves) == 1 and isinstance(leaves[0], Stored) else None


def _leaves(tensor: Tensor) -> Iterator[Stored | Zeros | Restored]:
    if isinstance(tensor, Stored | Zeros | Restored):
        yield tensor
        return
    for child in children(tensor):
        yield from _leaves(child)


def _overlapping(fills: list[Fill]) -> Iterator[list[Fill]]:
    """The fills by where they begin in the stored tensor, those together that reach over each other."""
    group, end = list[Fill](), 0
    for start, stop, fill in sorted(((*_reach(fill.tensor), fill) for fill in fills), key=lambda found: found[:2]):
        if group and start >= end:
            yield group
            group = []
        group, end = [*group, fill], max(end, stop)
    yield group


def _reach(tensor: Tensor) -> tuple[int, int]:
    """From the first to one past the last element of the stored tensor."""
    pieces = lower(tensor)
    return min(p.at for p in pieces), max(p.at + 1 + sum((d.count - 1) * d.at for d in p.dims) for p in pieces)


def _joined(fills: list[Fill]) -> Iterator[Fill | Together]:
    """Those of as many rows together, where rows are short and end with a byte; others as they are."""
    rows = _common_rows([fill.tensor for fill in fills])
    if sum(fill.tensor.nbytes for fill in fills) <= rows * ROW and all(
        fill.tensor.nbytes % rows == 0 and fill.tensor.size % rows == 0 for fill in fills
    ):
        yield Together(tuple(fills), rows, 0, rows)
    elif len(fills) > 1:
        for fill in fills:
            yield from _joined([fill])
    else:
        yield from fills


def _common_rows(tensors: list[Tensor]) -> int:
    """How many rows the axes make by which all begin; the last axis of a tensor is within its rows."""
    axes = zip(*(tensor.shape[:-1] for tensor in tensors), strict=False)
    return prod(sizes[0] for sizes in takewhile(lambda sizes: len(set(sizes)) == 1, axes))
