"""What the numbers of one tensor are like, in one pass over its blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NotSupported
from ..lazy.tensor import Tensor
from .arithmetic import TORCH_NAMES, exact
from .evaluate import blocks, load, workspace_of
from .workspace import DEFAULT_MEMORY

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts of `elements`, and of those that are zero, NaN or infinite; least, largest, mean and standard deviation
    of the finite ones, in double precision: NaN where there are none.
    """

    elements: int
    zeros: int
    nans: int
    infinite: int
    least: float
    largest: float
    mean: float
    deviation: float


def statistics(tensor: Tensor, memory: int = DEFAULT_MEMORY) -> Statistics:
    """The statistics of a tensor that is stored, in bounded memory. Raises NotSupported for a dtype that torch lacks,
    and for complex numbers.
    """
    import torch

    dtype = _dtype(tensor)
    zeros = nans = infinite = count = 0
    least, largest, mean, square = math.inf, -math.inf, 0.0, 0.0
    work = workspace_of(memory)
    try:
        with exact():
            for _, data in blocks(tensor, 0, tensor.size, work):
                values = torch.frombuffer(data, dtype=dtype).double()
                finite = values[values.isfinite()]
                zeros += int((values == 0).sum())
                nans += int(values.isnan().sum())
                infinite += int(values.isinf().sum())
                if n := finite.numel():
                    least, largest = min(least, float(finite.min())), max(largest, float(finite.max()))
                    here, spread = float(finite.mean()), float(finite.var(correction=0)) * n
                    square += spread + (here - mean) ** 2 * count * n / (count + n)
                    mean += (here - mean) * n / (count + n)
                    count += n
    finally:
        work.close()
    if not count:
        least = largest = mean = math.nan
    return Statistics(tensor.size, zeros, nans, infinite, least, largest, mean, _root(square, count))


def _root(square: float, count: int) -> float:
    return math.sqrt(square / count) if count else math.nan


def _dtype(tensor: Tensor) -> torch.dtype:
    import torch

    name = TORCH_NAMES.get(tensor.dtype.name)
    if name is None or getattr(torch, name).is_complex:
        raise NotSupported(f"there are no statistics of {tensor.dtype}", help="they are of real numbers that torch has")
    return getattr(torch, name)


def some_values(tensor: Tensor) -> list[list[float | int | bool]] | list[float | int | bool]:
    """The values of a small tensor: rows of a matrix; of one with more axes, all rows of its last one."""
    _dtype(tensor)
    value = load(tensor)
    value = value.double() if value.is_floating_point() else value
    if len(tensor.shape) < 2:
        return list(value.reshape(-1).tolist())
    return list(value.reshape(-1, tensor.shape[-1]).tolist())
