"""Tensors whose rows are made of the same rows of others.

A row is what the last axis holds: the leading axes are one. Movement stays above: pieces of such a tensor are rows of
it, or parts of rows, and `evaluation/rowwise.py` makes what is asked, on a grid that the tensor's shape alone chooses.
What is neither as it is nor whole rows of it is computed before all else, as of any other arithmetic.

Inputs are read as they would have been written, and the result is rounded once, to its dtype: so that several surgeries
in one pass are the same as one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..errors import LayoutError
from .dtypes import Dtype
from .function import Function
from .tensor import Measured, Rowwise, Shape, Tensor

Numbers = Mapping[str, float | str]


def rowwise(
    dtype: Dtype,
    rule: str,
    inputs: Sequence[Tensor],
    *,
    facts: Tensor | None = None,
    numbers: Numbers | None = None,
) -> Rowwise:
    """What the rule of that name makes of `inputs`, which have one shape. Raises LayoutError where they do not."""
    shape = inputs[0].shape
    if any(one.shape != shape for one in inputs):
        raise LayoutError(f"`{rule}` is of tensors of one shape, not of {[one.shape for one in inputs]}")
    return Rowwise(dtype, shape, rule, tuple(inputs), facts, _sorted(numbers))


def mapped(function: Function, tensor: Tensor, dtype: Dtype, columns: int) -> Rowwise:
    """What a user's function makes of the tensor's rows: as many, of `columns` each."""
    return Rowwise(dtype, mapped_shape(tensor.shape, columns), function, (tensor,))


def mapped_shape(shape: Shape, columns: int) -> Shape:
    """The shape with that many columns; of a scalar, whose one row has one, it is the scalar's."""
    return shape if not shape and columns == 1 else (*shape[:-1], columns)


def measured(many: int, rule: str, inputs: Sequence[Tensor], numbers: Numbers | None = None) -> Measured:
    """The `many` numbers that the rule of that name needs of the whole of `inputs`."""
    return Measured((many,), rule, tuple(inputs), _sorted(numbers))


def _sorted(numbers: Numbers | None) -> tuple[tuple[str, float | str], ...]:
    return tuple(sorted((numbers or {}).items()))
