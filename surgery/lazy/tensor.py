"""Lazy tensors: what a value is and where it comes from, never the value.

A closed sum type of frozen dataclasses, handled with `match`:

    leaves       Stored | Zeros | Random | Constant    bytes of a file; nothing at all; drawn from a key; said here
    movement     Reshape | Narrow | Permute | Concat   never looks at a value; `runs.py` lowers it to byte runs
    arithmetic   Sum | Norms | Mean | Product | Made   base + deltas in float32, rounded once; row or column norms; the
                                                       mean of rows; a product with a thin matrix; what a rule makes of
                                                       small tensors
    of several   Rowwise | Measured | Picked           each row made of the same rows of others, by a rule; numbers
                                                       that are of the whole of them; rows in any order
    coding       Decoded | Encoded | Fresh             the numbers that codes mean; the codes nearest to numbers, under
                                                       scales that are there, or under new ones, and these
    undoing      Before | Restored                     what a Sum's base most likely was; that, corrected by a record

What a sum adds to its base, and what multiplies it, is open: `change.py` says what each kind of it answers.

Build nodes with the functions below, not with the classes: they check shapes, and they move movement under arithmetic,
so that a row block of a sliced sum is the same row block of the sum. Elements are in row-major order everywhere.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from ..errors import LayoutError, NotSupported
from .change import Change, Delta
from .coding import Coding
from .dtypes import ARITHMETIC, CASTABLE, F32, F64, Dtype
from .fresh import Rule
from .function import Function

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file as it was when it was opened: a local one, or one on the Hub, `hf://org/name@commit/path`, which never
    changes.

    `digest` names its content for the identity of a plan: the SHA-256 of a checkpoint shard's header, or of an
    adapter file's whole content (a retrained adapter has the same header, size and perhaps time). On the Hub it is
    what the Hub says: the SHA-256 of the whole content, or git's hash of it.
    """

    path: str
    size: int
    mtime_ns: int
    digest: str = ""
    whole: bool = (
        False  # on the Hub: it is fetched as a whole, and held against `digest`, before any part of it is read
    )
    header: str = field(default="", repr=False, compare=False)  # SHA-256 of a local shard's header, where it was read

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
    """Float32 numbers that follow from `key` and their place alone: uniform in [-spread, spread), or normal with
    deviation `spread`. The same on every machine; `draw.py` draws them, without torch.
    """

    shape: Shape
    key: str
    spread: float
    normal: bool = False

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32


@dataclass(frozen=True, slots=True)
class Constant(_Sized):
    """These bytes: a table or a text that a format stores as a tensor."""

    dtype: Dtype
    shape: Shape
    data: bytes


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
class Sum(_Sized):
    """`(base + sum(deltas)) * gain`, computed in float32 (float64 for F64), rounded once to `dtype`. No deltas: a
    cast, which may be `lossy`: values beyond the range of `dtype` are then what torch makes of them, and no error.
    """

    dtype: Dtype
    base: Tensor
    deltas: tuple[Delta, ...] = ()
    gain: Change | None = None
    lossy: bool = False

    @property
    def is_cast(self) -> bool:
        """Whether it changes nothing but the dtype."""
        return not (self.deltas or self.gain)

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.base.shape


@dataclass(frozen=True, slots=True)
class Decoded(_Sized):
    """The numbers that `codes` mean, computed in float32 and rounded once to `dtype`: `coding.py`.

    Of more than two axes, the last two are a matrix each. `parts` are what the coding needs besides the codes, by
    name; `name` is for errors, what the codes are called.
    """

    dtype: Dtype
    shape: Shape
    coding: Coding
    codes: Tensor
    parts: tuple[tuple[str, Tensor], ...]
    name: str = ""

    def part(self, name: str) -> Tensor | None:
        """The part of that name."""
        return dict(self.parts).get(name)

    def over(self, inner: Callable[[Tensor], Tensor]) -> Decoded:
        """The same of what `inner` makes of codes and parts."""
        return replace(self, codes=inner(self.codes), parts=tuple((name, inner(part)) for name, part in self.parts))


@dataclass(frozen=True, slots=True)
class Encoded(_Sized):
    """The codes that mean, with the scales of `like`, what is nearest to the float32 numbers `of`; of two that are
    as near, the one that `like` has. Of its codes' dtype and shape.
    """

    of: Tensor
    like: Decoded

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.like.codes.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.like.codes.shape


@dataclass(frozen=True, slots=True)
class Fresh(_Sized):
    """What the numbers `of` become where they are quantised by `rule`: their codes, or the `scales` of these."""

    dtype: Dtype
    shape: Shape
    of: Tensor
    rule: Rule
    scales: bool = False


@dataclass(frozen=True, slots=True)
class Norms(_Sized):
    """Euclidean norms, in float32, of the rows of a matrix, or of its columns. Not row-local: a plan computes it
    before all else.
    """

    of: Tensor
    columns: bool = False

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.of.shape[-1:] if self.columns else self.of.shape[:-1]


@dataclass(frozen=True, slots=True)
class Mean(_Sized):
    """`copies` rows, each the mean of all rows of a matrix: summed in float64, rounded once to its dtype. A plan
    computes it before all else.
    """

    of: Tensor
    copies: int

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.of.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.copies, self.of.shape[1]


@dataclass(frozen=True, slots=True)
class Picked(_Sized):
    """Rows of a matrix in any order: row i is row `index[i]`, a number of 32 bits, little-endian. What a `Concat` of
    as many pieces would be.
    """

    of: Tensor
    index: bytes

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return self.of.dtype

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return len(self.index) // 4, self.of.shape[1]


@dataclass(frozen=True, slots=True)
class Product(_Sized):
    """The float32 product of a matrix, `of` (m, n), with a thin one: `of @ by` (m, r) for a `by` of (n, r), or, where
    `by` is on the left, `by @ of` (r, n) for one of (r, m). A plan computes it before all else.
    """

    of: Tensor
    by: Tensor
    left: bool = False

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return (self.by.shape[0], self.of.shape[1]) if self.left else (self.of.shape[0], self.by.shape[1])


@dataclass(frozen=True, slots=True)
class Made(_Sized):
    """What the rule of this name in `evaluation/rules/` makes of small tensors and numbers, computed whole, in
    float64, before all else, and rounded to float32.
    """

    shape: Shape
    rule: str
    inputs: tuple[Tensor, ...]
    numbers: tuple[tuple[str, float | str], ...] = ()

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F32


@dataclass(frozen=True, slots=True)
class Rowwise(_Sized):
    """What a rule makes, row by row, of the same rows of `inputs`: `rowwise.py` makes them.

    A rule of `evaluation/blending/` gives floats, which are rounded once to `dtype`; a `Function` of a user's gives the
    rows as they are. `facts`, of the whole of the inputs, are there before any row is made.
    """

    dtype: Dtype
    shape: Shape
    rule: str | Function
    inputs: tuple[Tensor, ...]
    facts: Tensor | None = None
    numbers: tuple[tuple[str, float | str], ...] = ()


@dataclass(frozen=True, slots=True)
class Measured(_Sized):
    """Numbers in float64 that a rule of `evaluation/blending/` needs of the whole of `inputs`, such as norms and
    thresholds. Not row-local: a plan computes it before all else, in passes over them.
    """

    shape: Shape
    rule: str
    inputs: tuple[Tensor, ...]
    numbers: tuple[tuple[str, float | str], ...] = ()

    @property
    def dtype(self) -> Dtype:  # type: ignore[override]
        return F64


@dataclass(frozen=True, slots=True)
class Before(_Sized):
    """`after / gain - sum(deltas)`, rounded to `dtype`: what the base of a `Sum` that gave `after` most likely was.

    The same bits on every machine, for whatever elements it is asked: `evaluation/undoing.py`.
    """

    dtype: Dtype
    after: Tensor
    deltas: tuple[Delta, ...] = ()
    gain: Change | None = None

    @property
    def shape(self) -> Shape:  # type: ignore[override]
        return self.after.shape


@dataclass(frozen=True, slots=True)
class Restored(_Sized):
    """`predicted`, corrected block by block to what it was when the record was made, and compared with the record's
    digests.

    `frames` (U8) holds the corrections of one block after another, `sizes` (U32) their bytes, `digests` (U8) 8 bytes
    for each.
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
    partly: frozenset[str] = frozenset()  # those of which not each element is used, or each as often
    names: frozenset[str] = frozenset()  # of what was made of them, where that is called otherwise


Leaf = (
    Stored
    | Zeros
    | Random
    | Constant
    | Sum
    | Decoded
    | Encoded
    | Fresh
    | Norms
    | Mean
    | Picked
    | Product
    | Made
    | Rowwise
    | Measured
    | Before
    | Restored
)
Tensor = Leaf | Reshape | Narrow | Permute | Concat
_COMPUTED = (Sum, Norms, Mean, Picked, Product, Made, Rowwise, Measured, Before, Decoded, Encoded, Fresh)
_MADE = (*_COMPUTED, Random, Constant)


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
        case Sum() if _keeps_columns(tensor.shape, shape):
            if moved := _moved(tensor, lambda change: change.reshape_rows(shape[:-1])):
                return Sum(tensor.dtype, reshape(tensor.base, shape), *moved, tensor.lossy)
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
        case Sum(dtype, base):
            if axis < len(tensor.shape) - 1:
                moved = _moved(tensor, lambda change: change.narrow_rows(axis, start, length))
            else:
                moved = _moved(tensor, lambda change: change.narrow_columns(start, length))
            if moved:
                return Sum(dtype, narrow(base, axis, start, length), *moved, tensor.lossy)
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
            if moved := _moved(tensor, lambda change: change.permute_rows(axes[:-1])):
                return Sum(dtype, permute(base, axes), *moved, tensor.lossy)
        case Decoded(coding=Coding(flat=False)) if axes == (*range(rank - 2), rank - 1, rank - 2):
            if not tensor.part("index"):
                return _transposed(tensor)
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


def add(base: Tensor, deltas: Sequence[Delta], dtype: Dtype | None = None, gain: Change | None = None) -> Tensor:
    """`(base + sum(deltas)) * gain`, rounded once to `dtype` (the base's when not given).

    No deltas and no gain: a cast, or the base itself.
    """
    dtype = dtype or base.dtype
    if not deltas and not gain and dtype == base.dtype:
        return base
    base = unrounded(base)
    if not deltas and not gain and isinstance(base, Decoded):
        return replace(base, dtype=dtype)
    for kind in (base.dtype, dtype):
        if kind not in ARITHMETIC:
            raise NotSupported(
                f"cannot compute on {kind} tensors", help="dequantise first; F16, BF16, F32 and F64 are computed"
            )
    for change in changes(deltas, gain):
        change.check(base.shape)
    return Sum(dtype, base, tuple(one.over(unrounded) for one in deltas), gain)


MADE = 1 << 22  # elements that a rule may be given, and those that it may make


def made(shape: Sequence[int], rule: str, inputs: Sequence[Tensor], **numbers: float | str) -> Made:
    """What the rule makes of the inputs, of `shape`. Raises NotSupported where that is more than is held at once."""
    node = Made(tuple(shape), rule, tuple(inputs), tuple(sorted(numbers.items())))
    if max(node.size, sum(one.size for one in inputs)) > MADE:
        raise NotSupported(
            f"`{rule}` of {[one.shape for one in inputs]} makes {node.shape}: more than {MADE} elements at once",
            help="merge it with the program that trained it",
        )
    return node


def product(of: Tensor, by: Tensor, *, left: bool = False) -> Product:
    """`of @ by`, or `by @ of` where `by` is on the left. Raises LayoutError unless they fit."""
    inner = (by.shape[-1], of.shape[0]) if left else (of.shape[-1], by.shape[0])
    if len(of.shape) != 2 or len(by.shape) != 2 or inner[0] != inner[1]:
        raise LayoutError(
            f"{by.shape} and {of.shape} have no product" if left else f"{of.shape} and {by.shape} have no product"
        )
    return Product(unrounded(of), by, left)


def mean(of: Tensor, copies: int) -> Mean:
    """`copies` rows that are the mean of the rows of a matrix. Raises LayoutError, NotSupported."""
    if len(of.shape) != 2 or not of.shape[0]:
        raise LayoutError(f"{of.shape} has no rows to take the mean of")
    if of.dtype not in ARITHMETIC:
        raise NotSupported(
            f"cannot compute on {of.dtype} tensors", help="dequantise first; F16, BF16, F32 and F64 are computed"
        )
    return Mean(of, copies)


def picked(of: Tensor, rows: Sequence[int]) -> Picked:
    """These rows of a matrix. Raises LayoutError for those that it has not."""
    if len(of.shape) != 2 or (rows and not 0 <= min(rows) <= max(rows) < of.shape[0]) or of.dtype.bits < 8:
        raise LayoutError(f"cannot take {len(rows)} rows of {of.dtype} {of.shape}")
    return Picked(of, struct.pack(f"<{len(rows)}I", *rows))


def in_dtype(tensor: Tensor, dtype: Dtype) -> Tensor:
    """The tensor in another dtype: movement stays above what is cast, and a sum is rounded once."""
    if tensor.dtype == dtype:
        return tensor
    match tensor:
        case Zeros(_, shape):
            return Zeros(dtype, shape)
        case Reshape() | Narrow() | Permute() | Concat():
            return moved_alike(tensor, lambda child: in_dtype(child, dtype))
        case Sum(_, base, deltas, gain) if not tensor.is_cast:
            return add(base, deltas, dtype, gain)
    return add(tensor, [], dtype)


def rounded(tensor: Tensor, dtype: Dtype, *, lossy: bool = False) -> Tensor:
    """The tensor in another dtype, as if it had been written before: what is computed is rounded to its own one first.

    `lossy`: what is beyond the range of `dtype` is no error.
    """
    if tensor.dtype == dtype:
        return tensor
    for kind in (tensor.dtype, dtype):
        if kind not in CASTABLE:
            raise NotSupported(f"{kind} is no dtype that is cast", help=f"those are {', '.join(map(str, CASTABLE))}")
    return Zeros(dtype, tensor.shape) if isinstance(tensor, Zeros) else Sum(dtype, tensor, lossy=lossy)


def unrounded(tensor: Tensor) -> Tensor:
    """The tensor with all that is decoded in it in float32: what is to be computed on is not rounded before."""
    return replace(tensor, dtype=F32) if isinstance(tensor, Decoded) else moved_alike(tensor, unrounded)


def as_written(tensor: Tensor) -> Tensor:
    """The tensor in which what is decoded is rounded to its dtype before anything is computed on it."""
    match tensor:
        case Decoded():
            return Sum(tensor.dtype, tensor) if tensor.dtype in ARITHMETIC else tensor
        case Reshape() | Narrow() | Permute() | Concat():
            made = moved_alike(tensor, as_written)
            return tensor if made == tensor else made
    return tensor


def changes(deltas: Sequence[Delta], gain: Change | None) -> tuple[Change, ...]:
    """All that a sum does to its base, in its order."""
    return (*deltas, gain) if gain else tuple(deltas)


def children(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors that a node is made of."""
    match tensor:
        case Stored():  # nearly all that is asked, a million times
            return ()
        case Reshape(base) | Narrow(base) | Permute(base):
            return (base,)
        case Concat(parts):
            return parts
        case Sum(_, base, deltas, gain):
            return (base, *(factor for change in changes(deltas, gain) for factor in change.factors))
        case Decoded(codes=codes, parts=parts):
            return (codes, *(part for _, part in parts))
        case Encoded(of, like):
            return (of, *children(like))
        case Norms(of) | Mean(of) | Picked(of) | Fresh(of=of):
            return (of,)
        case Product(of, by):
            return of, by
        case Made(inputs=inputs) | Measured(inputs=inputs):
            return inputs
        case Rowwise(inputs=inputs, facts=facts):
            return inputs if facts is None else (*inputs, facts)
        case Before(_, after, deltas, gain):
            return (after, *(factor for change in changes(deltas, gain) for factor in change.factors))
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
    return isinstance(tensor, _MADE) or any(is_computed(child) for child in children(tensor))


def has_arithmetic(tensor: Tensor) -> bool:
    """Whether a sum is in it: exactly reversible or not, without or with torch."""
    if isinstance(tensor, Restored) and tensor.frames.size:  # corrections are put in by torch
        return True
    return isinstance(tensor, _COMPUTED) or any(has_arithmetic(child) for child in children(tensor))


def substitute(tensor: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The tensor with `new` wherever `old` stood."""
    if tensor == old:
        return new

    def inner(child: Tensor) -> Tensor:
        return substitute(child, old, new)

    match tensor:
        case Sum(dtype, base, deltas, gain):
            return Sum(
                dtype, inner(base), tuple(d.over(inner) for d in deltas), gain and gain.over(inner), tensor.lossy
            )
        case Before(dtype, after, deltas, gain):
            return Before(dtype, inner(after), tuple(d.over(inner) for d in deltas), gain and gain.over(inner))
        case Norms(of, columns):
            return Norms(inner(of), columns)
        case Mean(of, copies):
            return Mean(inner(of), copies)
        case Picked(of, index):
            return Picked(inner(of), index)
        case Product(of, by, left):
            return Product(inner(of), inner(by), left)
        case Made(inputs=inputs) | Measured(inputs=inputs):
            return replace(tensor, inputs=tuple(map(inner, inputs)))
        case Rowwise(inputs=inputs, facts=facts):
            return replace(tensor, inputs=tuple(map(inner, inputs)), facts=facts and inner(facts))
        case Decoded():
            return tensor.over(inner)
        case Encoded(of, like):
            return Encoded(inner(of), like.over(inner))
        case Fresh(of=of):
            return replace(tensor, of=inner(of))
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


def _moved(total: Sum, move: Callable[[Change], Change | None]) -> tuple[tuple[Delta, ...], Change | None] | None:
    """The sum's deltas and gain after a movement of rows or columns; None where one of them cannot take it."""
    deltas = [move(delta) for delta in total.deltas]
    gain = move(total.gain) if total.gain else None
    if any(delta is None for delta in deltas) or (total.gain and gain is None):
        return None
    return tuple(cast(list["Delta"], deltas)), gain


def _transposed(tensor: Decoded) -> Decoded:
    """Its last two axes in the other order: codes and parts are transposed, nothing is decoded."""

    def turn(part: Tensor) -> Tensor:
        rank = len(part.shape)
        return permute(part, (*range(rank - 2), rank - 1, rank - 2)) if rank > 1 else part

    shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
    return replace(tensor.over(turn), shape=shape, coding=tensor.coding.turned())


def _with(shape: Shape, axis: int, size: int) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _keeps_columns(old: Shape, new: Shape) -> bool:
    return bool(old) and bool(new) and old[-1] == new[-1]


def _continue_each_other(parts: Sequence[Tensor], axis: int) -> bool:
    """Whether the parts are neighbouring pieces of one tensor, in their order there: joining them undoes the cuts."""
    at: int | None = None
    base: Tensor | None = None
    for part in parts:
        if (
            not isinstance(part, Narrow)
            or part.axis != axis
            or (base is not None and (part.base is not base or part.start != at))
        ):
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
