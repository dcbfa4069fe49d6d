"""Lowering: a tensor of any movement -> affine pieces of its leaves.

A `Piece` says which elements of one leaf make which elements of the tensor:

    for every index (i0, i1, ...):  tensor[to + i0*to_stride0 + ...] = leaf[at + i0*at_stride0 + ...]

Invariants. The pieces of a tensor are disjoint and cover it. Dims run from the largest `to_stride` to the smallest and
nest: a dim's stride is at least the extent of the dims after it. Offsets and strides count elements, so no dtype is
needed until `to_bytes`. Reshape changes nothing here (row-major order is the same); the other three cut pieces at the
borders of the axis (`_align`) and renumber `to`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ..errors import LayoutError
from .tensor import Concat, Leaf, Narrow, Permute, Reshape, Tensor


@dataclass(frozen=True, slots=True)
class Dim:
    """`count` steps of `at` elements in the leaf and `to` elements in the tensor."""

    count: int
    at: int
    to: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of `leaf`, and where they go; see the module's docstring."""

    leaf: Leaf
    at: int
    to: int
    dims: tuple[Dim, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(d.count for d in self.dims)

    @property
    def run(self) -> int:
        """Number of elements that lie together on both sides."""
        last = self.dims[-1] if self.dims else None
        return last.count if last and last.at == last.to == 1 else 1

    def runs(self) -> Iterator[tuple[int, int]]:
        """(at, to) of each run of `run` elements, in the order of `to`."""
        outer = self.dims[:-1] if self.run > 1 else self.dims
        for index in product(*(range(d.count) for d in outer)):
            yield (
                self.at + sum(i * d.at for i, d in zip(index, outer, strict=True)),
                self.to + sum(i * d.to for i, d in zip(index, outer, strict=True)),
            )


def lower(tensor: Tensor) -> list[Piece]:
    """The pieces that make `tensor`, in no particular order. A `Sum` is a leaf here, as a file's bytes are."""
    return [_merged(p) for p in _lower(tensor)]


def _lower(tensor: Tensor) -> list[Piece]:
    match tensor:
        case Reshape(base):
            return _lower(base)
        case Narrow(base, axis, start, length):
            inner, size = math.prod(base.shape[axis + 1 :]), base.shape[axis]
            return [
                _renumber(q, size * inner, length * inner, -start * inner)
                for p in _lower(base)
                for q in _align(p, size * inner)
                for q in _clip(q, start * inner, (start + length) * inner, size * inner)
            ]
        case Concat(parts, axis):
            total, begin, pieces = math.prod(tensor.shape[axis:]), 0, []
            for part in parts:
                window = math.prod(part.shape[axis:])
                pieces += [_renumber(q, window, total, begin) for p in _lower(part) for q in _align(p, window)]
                begin += window
            return pieces
        case Permute(base, axes):
            inners = [math.prod(base.shape[a + 1 :]) for a in range(len(base.shape))]
            outer = [math.prod(tensor.shape[i + 1 :]) for i in range(len(axes))]
            moved = {a: outer[i] for i, a in enumerate(axes)}
            pieces = _lower(base)
            for border in sorted({*inners} - {1}):
                pieces = [q for p in pieces for q in _align(p, border)]
            return [_permuted(p, base.shape, inners, moved) for p in pieces]
    return [Piece(tensor, 0, 0, (Dim(tensor.size, 1, 1),))] if tensor.size else []


def window(pieces: Sequence[Piece], start: int, stop: int, size: int) -> list[Piece]:
    """The parts of `pieces` that make elements [start, stop) of a tensor of `size` elements, renumbered from
    `start`.
    """
    return [_merged(replace(q, to=q.to - start)) for p in pieces for q in _clip(p, start, stop, size)]


def to_bytes(piece: Piece) -> Piece:
    """The piece in bytes: runs become runs of bytes, strides bytes. Raises LayoutError where a sub-byte dtype is
    cut.
    """
    bits = piece.leaf.dtype.bits
    if bits % 8 == 0:
        item = bits // 8
        dims = [Dim(d.count, d.at * item, d.to * item) for d in piece.dims]
        return _merged(Piece(piece.leaf, piece.at * item, piece.to * item, (*dims, Dim(item, 1, 1))))
    run = piece.run if piece.dims else 1
    outer = piece.dims[:-1] if piece.run > 1 else piece.dims
    numbers = [run, piece.at, piece.to, *(n for d in outer for n in (d.at, d.to))]
    if any(n * bits % 8 for n in numbers):
        raise LayoutError(
            f"cannot cut packed {piece.leaf.dtype} elements inside a byte",
            help="leave this tensor whole, or cut it where both sides fill whole bytes",
        )
    dims = [Dim(d.count, d.at * bits // 8, d.to * bits // 8) for d in outer]
    return _merged(Piece(piece.leaf, piece.at * bits // 8, piece.to * bits // 8, (*dims, Dim(run * bits // 8, 1, 1))))


def _merged(piece: Piece) -> Piece:
    """The piece with as few dims as it can have: none of one step, no two that are one."""
    merged: list[Dim] = []
    for dim in piece.dims:
        if dim.count == 1:
            continue
        if merged and merged[-1].at == dim.count * dim.at and merged[-1].to == dim.count * dim.to:
            merged[-1] = Dim(merged[-1].count * dim.count, dim.at, dim.to)
        else:
            merged.append(dim)
    return Piece(piece.leaf, piece.at, piece.to, tuple(merged))


def _piece(leaf: Leaf, at: int, to: int, dims: Sequence[Dim]) -> Piece:
    """A piece with its dims in order, without those of one step; cuts at borders stay."""
    return Piece(leaf, at, to, tuple(sorted((d for d in dims if d.count > 1), key=lambda d: -d.to)))


def _extent(dims: Sequence[Dim]) -> int:
    """How many elements of the tensor the dims reach over."""
    return 1 + sum((d.count - 1) * d.to for d in dims)


def _step(piece: Piece, dims: Sequence[Dim], dim: Dim, first: int, count: int) -> Piece:
    """The steps [first, first + count) of `dim` of a piece whose other dims are `dims`."""
    return _piece(piece.leaf, piece.at + first * dim.at, piece.to + first * dim.to, [*dims, Dim(count, dim.at, dim.to)])


def _align(piece: Piece, border: int) -> Iterator[Piece]:
    """Cut `piece` so that no part crosses a multiple of `border`, but for dims whose stride is a multiple of it."""
    high = [d for d in piece.dims if d.to >= border]
    low = [d for d in piece.dims if d.to < border]
    odd = next((d for d in high if d.to % border), None)
    if odd is not None:
        rest = [d for d in piece.dims if d is not odd]
        for k in range(odd.count):
            yield from _align(_step(piece, rest, odd, k, 1), border)
        return
    phase = piece.to % border
    if phase + _extent(low) <= border:
        yield piece
        return
    dim, rest = low[0], [d for d in piece.dims if d is not low[0]]
    if border % dim.to or phase % dim.to + _extent(low[1:]) > dim.to:
        for k in range(dim.count):
            yield from _align(_step(piece, rest, dim, k, 1), border)
        return
    per, begun = border // dim.to, phase // dim.to
    head = min((per - begun) % per, dim.count)
    full = (dim.count - head) // per
    tail = dim.count - head - full * per
    if head:
        yield _step(piece, rest, dim, 0, head)
    if full:
        at, to = piece.at + head * dim.at, piece.to + head * dim.to
        yield _piece(piece.leaf, at, to, [*rest, Dim(full, per * dim.at, border), Dim(per, dim.at, dim.to)])
    if tail:
        yield _step(piece, rest, dim, dim.count - tail, tail)


def _clip(piece: Piece, start: int, stop: int, border: int) -> Iterator[Piece]:
    """The parts of an aligned piece whose place within its `border` is in [start, stop)."""
    phase, low = piece.to % border, [d for d in piece.dims if d.to < border]
    if stop <= phase or phase + _extent(low) <= start:
        return
    if start <= phase and phase + _extent(low) <= stop:
        yield piece
        return
    dim, rest, reach = low[0], [d for d in piece.dims if d is not low[0]], _extent(low[1:])
    touch = range(max(0, (start - phase - reach) // dim.to + 1), min(dim.count, -((phase - stop) // dim.to)))
    first = max(touch.start, -((phase - start) // dim.to))  # the first step that begins in range
    last = min(touch.stop, (stop - phase - reach) // dim.to + 1)  # one past the last that ends in range
    if first < last:
        yield _step(piece, rest, dim, first, last - first)
    edges = touch if first >= last else (*range(touch.start, first), *range(last, touch.stop))
    for k in edges:
        yield from _clip(_step(piece, rest, dim, k, 1), start, stop, border)


def _renumber(piece: Piece, old: int, new: int, shift: int) -> Piece:
    """The piece of a tensor whose windows of `old` elements became `new` wide and begin `shift` later."""
    dims = [Dim(d.count, d.at, d.to // old * new if d.to >= old else d.to) for d in piece.dims]
    return _piece(piece.leaf, piece.at, piece.to // old * new + piece.to % old + shift, dims)


def _permuted(piece: Piece, shape: Sequence[int], inner: Sequence[int], moved: dict[int, int]) -> Piece:
    """An aligned piece after a permutation: each dim lies in one axis, and takes that axis' new stride."""

    def to(flat: int, coordinate: bool) -> int:
        axes = [a for a, n in enumerate(shape) if n > 1 and (coordinate or inner[a] <= flat < inner[a] * n)]
        return sum(flat // inner[a] % shape[a] * moved[a] for a in axes)

    dims = [Dim(d.count, d.at, to(d.to, False)) for d in piece.dims]
    return _piece(piece.leaf, piece.at, to(piece.to, True), dims)
