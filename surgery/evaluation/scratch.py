"""What must be computed as a whole before it is used: what is not row-local."""

from __future__ import annotations

from collections.abc import Iterator

from ..lazy.runs import Piece, lower
from ..lazy.tensor import Norms, Sum, Tensor, children, has_arithmetic
from .tiles import columns_of

SCRATCH = "scratch"  # the path under which a plan names the file of its scratch tensors


def scratch_of(tensor: Tensor) -> Tensor | None:
    """A tensor inside `tensor` that must be computed as a whole, before it is used; None where there is none."""
    for piece in lower(tensor) if has_arithmetic(tensor) else []:
        leaf = piece.leaf
        if isinstance(leaf, Norms):
            return scratch_of(leaf.of) or leaf
        if isinstance(leaf, Sum) and (found := _inside(leaf) or (None if _by_rows(piece) else leaf)):
            return found
    return None


def _inside(total: Sum) -> Tensor | None:
    """What a sum needs computed before it: in what it is made of, and factors that are sums themselves."""
    for child in children(total):
        if inner := scratch_of(child):
            return inner
    factors = (factor for delta in total.deltas for factor in delta.factors)
    return next((found for factor in factors if has_arithmetic(factor) for found in sums_in(factor)), None)


def _by_rows(piece: Piece) -> bool:
    """Whether the piece takes its sum as it is, or in whole rows."""
    columns = columns_of(piece.leaf)
    whole = piece.size == piece.leaf.size and piece.run == piece.leaf.size
    strides = (piece.at, piece.run, *(d.at for d in (piece.dims[:-1] if piece.run > 1 else piece.dims)))
    return whole or not any(n % columns for n in strides)


def sums_in(tensor: Tensor) -> Iterator[Sum]:
    """The sums that it is made of, but for those inside of them."""
    if isinstance(tensor, Sum):
        yield tensor
        return
    for child in children(tensor):
        yield from sums_in(child)
