"""A tensor of a storage, as torch describes it by an offset and strides, as movement over stored bytes.

contiguous                       the stored elements themselves
dense, in another order          a permutation of them: a transpose, channels last
with gaps                        rows of an enclosing block, narrowed
overlapping, repeated, reversed  refused: torch saves a few numbers, and means many
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...errors import LayoutError
from ...lazy.dtypes import Dtype
from ...lazy.tensor import File, Reshape, Shape, Stored, Tensor, concat, narrow, permute, reshape


def strided(file: File, at: int, nbytes: int, dtype: Dtype, offset: int, shape: Shape, strides: Shape) -> Tensor:
    """The tensor in the storage of `nbytes` that begins at byte `at` of the file; offset and strides are elements.

    Raises LayoutError where it does not lie within the storage, or is no movement of what does.
    """
    if len(shape) != len(strides) or min((*shape, *strides, offset), default=0) < 0:
        raise LayoutError(f"shape {shape} with strides {strides} from element {offset} on is no tensor")
    if math.prod(shape) == 0:
        return Stored(dtype, shape, file, at)
    start, item = at + offset * dtype.bits // 8, dtype.bits // 8
    if _is_contiguous(shape, strides) and (offset + math.prod(shape)) * dtype.bits <= nbytes * 8:
        return Stored(dtype, shape, file, start)
    if not item:
        raise LayoutError(f"shape {shape} with strides {strides} leaves gaps between numbers that share bytes")
    reach = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + 1
    if reach * item > nbytes:
        raise LayoutError(f"it reaches to element {reach} of a storage of {nbytes // item}")
    order = sorted((axis for axis in range(len(shape)) if shape[axis] > 1), key=lambda axis: -strides[axis])
    dims = [(shape[axis], strides[axis]) for axis in order]
    if all(step == math.prod(n for n, _ in dims[i + 1 :]) for i, (_, step) in enumerate(dims)):
        inner: Tensor = Stored(dtype, tuple(n for n, _ in dims), file, start)
    else:
        inner = _with_gaps(Stored(dtype, (reach - offset,), file, start), dims)
    turned = permute(inner, [order.index(axis) for axis in sorted(order)])
    return _at_once(reshape(turned, shape))


def _is_contiguous(shape: Shape, strides: Shape) -> bool:
    step = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if stride != step:
            return False
        step *= size
    return True


def _with_gaps(flat: Tensor, dims: Sequence[tuple[int, int]]) -> Tensor:
    """The elements of the last axis of `flat` that (count, step) of each of `dims` name, from large steps to small."""
    if not dims:
        return narrow(flat, -1, 0, 1) if flat.shape[-1] > 1 else flat
    (count, step), rest = dims[0], dims[1:]
    reach = 1 + sum((n - 1) * by for n, by in rest)
    if not step or reach > step:
        what = f"{count} rows that begin every {step} elements and are {reach} long share elements"
        raise LayoutError(what, help="save it again as its own elements, after .contiguous()")
    lead, size = flat.shape[:-1], flat.shape[-1]
    whole = min(count, size // step)
    parts = []
    if whole:
        rows = reshape(narrow(flat, -1, 0, whole * step), (*lead, whole, step))
        parts.append(_shaped(_with_gaps(rows, rest), (*lead, whole), rest))
    for row in range(whole, count):  # the last one, which may end before the next would begin
        left = narrow(flat, -1, row * step, min(step, size - row * step))
        parts.append(_shaped(_with_gaps(left, rest), (*lead, 1), rest))
    return concat(parts, len(lead))


def _shaped(tensor: Tensor, lead: Shape, dims: Sequence[tuple[int, int]]) -> Tensor:
    return reshape(tensor, (*lead, *(n for n, _ in dims)))


def _at_once(tensor: Tensor) -> Tensor:
    """A stored tensor under its own shape where movement only renamed it."""
    match tensor:
        case Reshape(Stored(dtype, _, file, offset), shape):
            return Stored(dtype, shape, file, offset)
    return tensor
