"""What must be computed as a whole before it is used: what is not row-local."""

from __future__ import annotations

from collections.abc import Iterator

from ..lazy.runs import Piece, lower
from ..lazy.tensor import (
    Decoded,
    Encoded,
    Fresh,
    Made,
    Mean,
    Measured,
    Norms,
    Picked,
    Product,
    Rowwise,
    Sum,
    Tensor,
    changes,
    children,
    has_arithmetic,
)
from .tiles import columns_of

SCRATCH = "scratch"  # the path under which a plan names the file of its scratch tensors


def scratch_of(tensor: Tensor) -> Tensor | None:
    """A tensor inside `tensor` that must be computed as a whole, before it is used; None where there is none."""
    for piece in lower(tensor) if has_arithmetic(tensor) else []:
        leaf = piece.leaf
        if isinstance(leaf, Norms | Mean | Product | Made | Measured):
            return next((found for child in children(leaf) if (found := scratch_of(child))), leaf)
        if isinstance(leaf, Sum) and (found := _inside(leaf) or (None if _by_rows(piece) else leaf)):
            return found
        if isinstance(leaf, Decoded | Encoded | Fresh | Rowwise | Picked) and (
            found := _of(leaf) or (None if _by_rows(piece) else leaf)
        ):
            return found
    return None


def scratch_of_factor(factor: Tensor) -> Tensor | None:
    """The same for a factor of a sum, in which no sum may be left: it is read while that sum is worked on."""
    return scratch_of(factor) or next(sums_in(factor), None)


def _inside(total: Sum) -> Tensor | None:
    """What a sum needs computed before it: in its base, and all of its factors."""
    if inner := scratch_of(total.base):
        return inner
    factors = (factor for change in changes(total.deltas, total.gain) for factor in change.factors)
    return next((found for factor in factors if (found := scratch_of_factor(factor))), None)


def _of(coded: Decoded | Encoded | Fresh | Rowwise | Picked) -> Tensor | None:
    """What must be there before codes can be read, or made: all that they are made of is read in rows."""
    return next((found for child in children(coded) if (found := scratch_of(child))), None)


def _by_rows(piece: Piece) -> bool:
    """Whether the piece takes its sum as it is, or in whole rows."""
    columns = columns_of(piece.leaf)
    whole = piece.size == piece.leaf.size and piece.run == piece.leaf.size
    strides = (piece.at, piece.run, *(d.at for d in (piece.dims[:-1] if piece.run > 1 else piece.dims)))
    return whole or not any(n % columns for n in strides)


def sums_in(tensor: Tensor) -> Iterator[Sum]:
    """The sums that it is made of, but for those inside of them."""
    return (found for found in tiled_in(tensor) if isinstance(found, Sum))


def tiled_in(tensor: Tensor) -> Iterator[Sum | Decoded | Encoded | Fresh | Rowwise]:
    """What in it is best made in whole rows."""
    if isinstance(tensor, Sum | Decoded | Encoded | Fresh | Rowwise):
        yield tensor
        return
    for child in children(tensor):
        yield from tiled_in(child)


def encoded_in(tensor: Tensor) -> Iterator[Encoded]:
    """The codes that are made in it."""
    return (found for found in tiled_in(tensor) if isinstance(found, Encoded))
