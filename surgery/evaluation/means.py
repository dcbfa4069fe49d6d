"""The mean of a matrix's rows: summed in float64, row after row, and rounded once. The same bits on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.dtypes import BF16, F16
from ..lazy.tensor import Mean
from .arithmetic import one_thread, torch_dtype
from .losses import watched
from .tiles import ROWS

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_mean(mean: Mean, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of its rows, which are all the same."""
    import torch

    row = work.last("mean", mean.of, lambda: _rounded(_mean(mean, work), mean))
    result, at = torch.frombuffer(out, dtype=row.dtype), start
    while at < stop:
        first = at % len(row)
        count = min(stop - at, len(row) - first)
        result[at - start : at - start + count].copy_(row[first : first + count])
        at += count
    if not work.depth:
        watched(result, work.loss)


def _mean(mean: Mean, work: Workspace) -> torch.Tensor:
    """It in float64."""
    import torch

    one_thread()
    height, columns = mean.of.shape
    total = torch.zeros(columns, dtype=torch.float64)
    for first in range(0, height, ROWS):
        tall = min(ROWS, height - first)
        raw = work.buffer("mean", tall * columns * mean.of.dtype.bits // 8)
        work.fill(mean.of, first * columns, (first + tall) * columns, raw)
        for line in torch.frombuffer(raw, dtype=torch_dtype(mean.of.dtype)).view(tall, columns).double():
            total.add_(line)
    return total.div_(height)


def _rounded(value: torch.Tensor, mean: Mean) -> torch.Tensor:
    """The value in the mean's dtype. Torch goes to 16 bits by way of float32: what is not exact there becomes odd, so
    that the second rounding decides as if it were the only one.
    """
    import torch

    if mean.dtype not in (F16, BF16):
        return value.to(torch_dtype(mean.dtype))
    single = value.float()
    back = single.double()
    bits = single.view(torch.int32)
    inexact = (back != value) & torch.isfinite(back)
    toward_zero = bits - (inexact & (back.abs() > value.abs())).int()
    return torch.where(inexact, toward_zero | 1, bits).view(torch.float32).to(torch_dtype(mean.dtype))
