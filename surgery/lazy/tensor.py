"""Lazy tensors: what a value is and where it comes from, never the value.

A closed sum type of frozen dataclasses, handled with `match`:

    leaves       Stored | Zeros | Random               bytes of a file; nothing at all; numbers drawn from a key
    movement     Reshape | Narrow | Permute | Concat   never looks at a value; `runs.py` lowers it to byte runs
    arithmetic   Sum | Norms                           base + deltas in float32, rounded once; row or column norms: `evaluate.py`
    undoing      Before | Restored                     what a Sum's base most likely was; that, corrected by a record: `undo.py`

Build nodes with the functions below, not with the classes: they check shapes, and they move movement under arithmetic,
so that a row block of a sliced sum is the same row block of the sum. Elements are in row-major order everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..errors import LayoutError, NotSupported
from .dtypes import ARITHMETIC, F32, Dtype

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was opened: a local one, or one on the Hub, `hf://org/name@commit/path`, which never changes.

    `digest` names its content for the identity of a plan: the SHA-256 of a checkpoint shard's header, or of an adapter
    file's whole content (a retrained adapter has the same header, size and perhaps time). On the Hub it is what the Hub says:
    the SHA-256 of the whole content, or git's hash of it.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str = ""
    whole: bool = False  # on the Hub: it is fetched as a whole, and held against `digest`, before any part of it is read

    @property
    def remote(self) -> bool:
        """Whether it is on the Hub."""
        return self.path.startswith("hf://")


class _Sized:
    """Sizes that follow from dtype and shape."""

    __slots__ = ()
    dtype: Dtype
    shape: Shape

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes when written."""
        return self.size * self.dtype.bits // 8


@dataclass(frozen=True, slots=True)
class Stored(_Sized):
    """Elements that lie in `file` from byte `offset` on."""

    dtype: Dtype
    shape: Shape
    file: File
    offset: int


@dataclass(frozen=True, slots=True)
class Zeros(_Sized):
    """All-zero bits: needs no source, and no torch to write."""

    dtype: Dtype
    shape: Shape


@dataclass(frozen=True, slots=True)
class Random(_Sized):
    """Float32 numbers that follow from `key` and their place alone: uniform in [-spread, spread), or normal with deviation
    `spread`. The same on every machine; `draw.py` draws them, without torch.
    """

    shape: Shape
    key: str
    spread: float
    normal: bool = False

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32


@dataclass(frozen=True, slots=True)
class Reshape(_Sized):
    """The same elements in the same order under another shape."""

    base: Tensor
    shape: Shape

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.base.dtype


@dataclass(frozen=True, slots=True)
class Narrow(_Sized):
    """`length` entries of `axis` from `start` on."""

    base: Tensor
    axis: int
    start: int
    length: int

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.base.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return _with(self.base.shape, self.axis, self.length)


@dataclass(frozen=True, slots=True)
class Permute(_Sized):
    """Axis i of the result is axis `axes[i]` of the base."""

    base: Tensor
    axes: Shape

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.base.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return tuple(self.base.shape[a] for a in self.axes)


@dataclass(frozen=True, slots=True)
class Concat(_Sized):
    """The parts one after another along `axis`."""

    parts: tuple[Tensor, ...]
    axis: int

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return _with(self.parts[0].shape, self.axis, sum(p.shape[self.axis] for p in self.parts))


@dataclass(frozen=True, slots=True)
class LowRank:
    """The delta `scale * left @ right`: left (*rows, r), right (r, columns), for a tensor (*rows, columns).

    Without a right factor it is `scale * left`, of the tensor's own shape.
    """

    left: Tensor
    right: Tensor | None
    scale: float

    @property
    def shape(self) -> Shape:
        """Of the product."""
        return self.left.shape if self.right is None else (*self.left.shape[:-1], self.right.shape[1])

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.left,) if self.right is None else (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Gain:
    """The factor `magnitude / norms` for each row (of the flattened leading axes), or for each column."""

    magnitude: Tensor
    norms: Tensor
    columns: bool = False

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """The tensors that it is made of."""
        return self.magnitude, self.norms


@dataclass(frozen=True, slots=True)
class Sum(_Sized):
    """`(base + sum(deltas)) * gain`, computed in float32 (float64 for F64), rounded once to `dtype`. No deltas: a cast."""

    dtype: Dtype
    base: Tensor
    deltas: tuple[LowRank, ...] = ()
    gain: Gain | None = None

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.base.shape


@dataclass(frozen=True, slots=True)
class Norms(_Sized):
    """Euclidean norms, in float32, of the rows of a matrix, or of its columns. Not row-local: a plan computes it before all else."""

    of: Sum
    columns: bool = False

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.of.shape[-1:] if self.columns else self.of.shape[:-1]


@dataclass(frozen=True, slots=True)
class Before(_Sized):
    """`after / gain - sum(deltas)`, rounded to `dtype`: what the base of a `Sum` that gave `after` most likely was.

    The same bits on every machine, for whatever elements it is asked: `undo.py`.
    """

    dtype: Dtype
    after: Tensor
    deltas: tuple[LowRank, ...] = ()
    gain: Gain | None = None

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.after.shape


@dataclass(frozen=True, slots=True)
class Restored(_Sized):
    """`predicted`, corrected block by block to what it was when the record was made, and compared with the record's digests.

    `frames` (U8) holds the corrections of one block after another, `sizes` (U32) their bytes, `digests` (U8) 8 bytes for each.
    """

    name: str
    predicted: Tensor
    frames: Stored
    sizes: Stored
    digests: Stored

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.predicted.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.predicted.shape


@dataclass(frozen=True, slots=True)
class Input:
    """What was opened: its place, its files, and all its tensors by name."""

    role: str  # "base" or "adapter"
    path: str
    files: tuple[File, ...]
    tensors: Mapping[str, Stored]


Leaf = Stored | Zeros | Random | Sum | Norms | Before | Restored
Tensor = Leaf | Reshape | Narrow | Permute | Concat


def reshape(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The same elements under `shape`, whose product must be the tensor's size."""
    shape = tuple(shape)
    if math.prod(shape) != tensor.size:
        raise LayoutError(f"cannot reshape {tensor.shape} to {shape}: {tensor.size} elements, not {math.prod(shape)}")
    match tensor:
        case _ if shape == tensor.shape:
            return tensor
        case Reshape(base):
            return reshape(base, shape)
        case Sum(dtype, base, deltas, gain) if _keeps_columns(tensor.shape, shape):
            moved = [LowRank(reshape(d.left, (*shape[:-1], d.left.shape[-1])), d.right, d.scale) for d in deltas]
            return Sum(dtype, reshape(base, shape), tuple(moved), _by_rows(gain, lambda rows: reshape(rows, shape[:-1])))
    return Reshape(tensor, shape)


def narrow(tensor: Tensor, axis: int, start: int, length: int) -> Tensor:
    """Entries [start, start + length) of `axis`."""
    size = tensor.shape[axis]
    axis %= len(tensor.shape)
    if not (start >= 0 and length >= 0 and start + length <= size):
        raise LayoutError(f"cannot take [{start}, {start + length}) of axis {axis} of {tensor.shape}")
    match tensor:
        case _ if length == size:
            return tensor
        case Zeros(dtype, shape):
            return Zeros(dtype, _with(shape, axis, length))
        case Narrow(base, same, first, _) if same == axis:
            return narrow(base, axis, first + start, length)
        case Concat(parts, same) if same == axis and (found := _within(parts, axis, start, length)):
            part, first = found
            return narrow(part, axis, first, length)
        case Sum(dtype, base, deltas, gain) if axis < len(tensor.shape) - 1:
            moved = [LowRank(narrow(d.left, axis, start, length), d.right, d.scale) for d in deltas]
            return Sum(
                dtype, narrow(base, axis, start, length), tuple(moved), _by_rows(gain, lambda rows: narrow(rows, axis, start, length))
            )
        case Sum(dtype, base, deltas, gain):
            moved = [_columns(d, start, length) for d in deltas]
            if gain and gain.columns:
                gain = Gain(narrow(gain.magnitude, 0, start, length), narrow(gain.norms, 0, start, length), columns=True)
            return Sum(dtype, narrow(base, axis, start, length), tuple(moved), gain)
    return Narrow(tensor, axis, start, length)


def permute(tensor: Tensor, axes: Sequence[int]) -> Tensor:
    """Axis i of the result is axis `axes[i]` of the tensor."""
    axes, rank = tuple(axes), len(tensor.shape)
    if sorted(axes) != list(range(rank)):
        raise LayoutError(f"{axes} is not an order of the axes of {tensor.shape}")
    match tensor:
        case _ if axes == tuple(range(rank)):
            return tensor
        case Permute(base, before):
            return permute(base, [before[a] for a in axes])
        case Sum(dtype, base, deltas, gain) if axes[-1] == rank - 1 or not (deltas or gain):
            moved = [LowRank(permute(d.left, axes), d.right, d.scale) for d in deltas]
            return Sum(dtype, permute(base, axes), tuple(moved), _by_rows(gain, lambda rows: permute(rows, axes[:-1])))
    return Permute(tensor, axes)


def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """The parts one after another along `axis`; dtypes and all other axes must agree."""
    first = parts[0]
    axis %= len(first.shape)
    for part in parts[1:]:
        if part.dtype != first.dtype or _with(part.shape, axis, 0) != _with(first.shape, axis, 0):
            raise LayoutError(
                f"cannot join {part.dtype} {part.shape} to {first.dtype} {first.shape} along axis {axis}",
                help="all parts need one dtype, and equal shapes but for that axis",
            )
    if len(parts) == 1:
        return first
    if isinstance(first, Narrow) and _continue_each_other(parts, axis):
        return narrow(first.base, axis, first.start, sum(p.shape[axis] for p in parts))
    return Concat(tuple(parts), axis)


def add(base: Tensor, deltas: Sequence[LowRank], dtype: Dtype | None = None, gain: Gain | None = None) -> Tensor:
    """`(base + sum(deltas)) * gain`, rounded once to `dtype` (the base's when not given).

    No deltas and no gain: a cast, or the base itself.
    """
    dtype = dtype or base.dtype
    if not deltas and not gain and dtype == base.dtype:
        return base
    for kind in (base.dtype, dtype):
        if kind not in ARITHMETIC:
            raise NotSupported(f"cannot compute on {kind} tensors", help="dequantise first; F16, BF16, F32 and F64 are computed")
    for d in deltas:
        if d.shape != base.shape or (d.right is not None and d.left.shape[-1] != d.right.shape[0]):
            raise LayoutError(f"a delta of {' x '.join(str(f.shape) for f in d.factors)} does not fit {base.shape}")
    if gain and any(f.shape != (base.shape[-1:] if gain.columns else base.shape[:-1]) for f in gain.factors):
        raise LayoutError(f"magnitudes of {gain.magnitude.shape} do not fit {base.shape}")
    return Sum(dtype, base, tuple(deltas), gain)


def children(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that a node is made of."""
    match tensor:
        case Reshape(base) | Narrow(base) | Permute(base):
            return (base,)
        case Concat(parts):
            return parts
        case Sum(_, base, deltas, gain):
            return (base, *(t for d in deltas for t in d.factors), *(gain.factors if gain else ()))
        case Norms(of):
            return (of,)
        case Before(_, after, deltas, gain):
            return (after, *(t for d in deltas for t in d.factors), *(gain.factors if gain else ()))
        case Restored(_, predicted, frames, sizes, digests):
            return predicted, frames, sizes, digests
    return ()


def stored(tensor: Tensor) -> Iterator[Stored]:
    """Every `Stored` leaf that the tensor is made of, deltas included."""
    if isinstance(tensor, Stored):
        yield tensor
    for child in children(tensor):
        yield from stored(child)


def is_computed(tensor: Tensor) -> bool:
    """Whether any value in it is made and not copied. What is restored without a correction is copied, and compared."""
    if isinstance(tensor, Restored) and tensor.frames.size:
        return True
    return isinstance(tensor, Sum | Norms | Random | Before) or any(is_computed(child) for child in children(tensor))


def has_arithmetic(tensor: Tensor) -> bool:
    """Whether a sum is in it: exactly reversible or not, without or with torch."""
    if isinstance(tensor, Restored) and tensor.frames.size:  # corrections are put in by torch
        return True
    return isinstance(tensor, Sum | Norms | Before) or any(has_arithmetic(child) for child in children(tensor))


def substitute(tensor: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The tensor with `new` wherever `old` stood."""
    if tensor == old:
        return new

    def inner(child: Tensor) -> Tensor:
        return substitute(child, old, new)

    match tensor:
        case Sum(dtype, base, deltas, gain):
            moved = [LowRank(inner(d.left), None if d.right is None else inner(d.right), d.scale) for d in deltas]
            scaled = Gain(inner(gain.magnitude), inner(gain.norms), gain.columns) if gain else None
            return Sum(dtype, inner(base), tuple(moved), scaled)
    return moved_alike(tensor, inner)


def moved_alike(tensor: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor's movement, over what `inner` makes of the tensors that it moves; a leaf is itself."""
    match tensor:
        case Reshape(base, shape):
            return reshape(inner(base), shape)
        case Narrow(base, axis, start, length):
            return narrow(inner(base), axis, start, length)
        case Permute(base, axes):
            return permute(inner(base), axes)
        case Concat(parts, axis):
            return concat([inner(part) for part in parts], axis)
    return tensor


def _by_rows(gain: Gain | None, move: Callable[[Tensor], Tensor]) -> Gain | None:
    """The gain after a movement of the rows, which leaves those of columns as they are."""
    return Gain(move(gain.magnitude), move(gain.norms)) if gain and not gain.columns else gain


def _columns(delta: LowRank, start: int, length: int) -> LowRank:
    if delta.right is None:
        return LowRank(narrow(delta.left, -1, start, length), None, delta.scale)
    return LowRank(delta.left, narrow(delta.right, 1, start, length), delta.scale)


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _keeps_columns(old: Shape, new: Shape) -> bool:
    return bool(old) and bool(new) and old[-1] == new[-1]


def _continue_each_other(parts: Sequence[Tensor], axis: int) -> bool:
    """Whether the parts are neighbouring pieces of one tensor, in their order there: joining them undoes the cuts."""
    at: int | None = None
    base: Tensor | None = None
    for part in parts:
        if not isinstance(part, Narrow) or part.axis != axis or (base is not None and (part.base is not base or part.start != at)):
            return False
        at, base = part.start + part.length, part.base
    return True


def _within(parts: tuple[Tensor, ...], axis: int, start: int, length: int) -> tuple[Tensor, int] | None:
    """The part that holds all of [start, start + length), and where in it that begins."""

    at = 0
    for part in parts:
        end = at + part.shape[axis]
        if length and at <= start and start + length <= end:
            return part, start - at
        at = end
    return None
