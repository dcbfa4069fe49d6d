"""Where two tensors that should be equal are not: the first element that differs, and its bytes in both."""

from __future__ import annotations

from dataclasses import dataclass

from ..lazy.tensor import Shape, Tensor
from .compare import comparing, windows, workspace


@dataclass(frozen=True, slots=True)
class Differs:
    """The first element, in row-major order, whose bits are not the same: its place, and its bytes in each."""

    place: Shape
    first: bytes
    second: bytes


def first_difference(first: Tensor, second: Tensor) -> Differs | None:
    """The first element that differs of two tensors of one dtype and shape; None where all bits are equal.

    Reads window by window, up to that element.
    """
    if first == second:
        return None
    item, seen = max(1, first.dtype.bits // 8), 0
    with workspace() as work, comparing((first, second), work) as pair:
        for views in windows(pair, work):
            one, other = (bytes(view) for view in views)
            if one != other:
                at = next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b) // item * item
                place = _place((seen + at) // item, first.shape)
                return Differs(place, one[at : at + item], other[at : at + item])
            seen += len(one)
    return None


def _place(element: int, shape: Shape) -> Shape:
    """An element by its index along each axis."""
    found: tuple[int, ...] = ()
    for size in reversed(shape):
        element, index = divmod(element, size)
        found = (index, *found)
    return found
