"""Elements of a `Sum` that adds nothing: torch's own `Tensor.to`, element by element, and what that loses, counted.

Torch rounds each element alone, so that windows do not matter; but a NaN of float32 or float64 is 0xffff or 0x7fc0 in
bfloat16, by whether a vector of it is full. Here it is the former, wherever it stands. Torch makes what is beyond the
range of float8_e4m3fn, infinity too, the largest value of that dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.dtypes import BF16, E4M3, E5M2, F32, F64, WIDER, Dtype
from ..lazy.tensor import Sum
from .arithmetic import one_thread, torch_dtype

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

CHUNK = 1 << 17  # elements at once: source, result and what is counted stay in the cache
LARGEST = 464.0  # the last number that rounds to 448, float8_e4m3fn's largest


def fill_cast(total: Sum, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of a cast."""
    import torch

    one_thread()
    kind = total.base.dtype
    raw = work.buffer(f"base {work.depth}", (stop - start) * kind.bits // 8)
    work.fill_under(total.base, start, stop, raw)
    source = torch.frombuffer(raw, dtype=torch_dtype(kind))
    result = torch.frombuffer(out, dtype=torch_dtype(total.dtype))
    for at in range(0, stop - start, CHUNK):
        before, after = source[at : at + CHUNK], result[at : at + CHUNK]
        after.copy_(before)
        if total.dtype not in WIDER[kind]:
            _count(before, after, total, work)


def _count(before: torch.Tensor, after: torch.Tensor, total: Sum, work: Workspace) -> None:
    """Count what a part lost, and give a NaN the bits that it has everywhere."""
    kind, dtype = total.base.dtype, total.dtype
    if kind.bits == 8:
        before = before.float()
    nonfinite = _nonfinite(after, dtype)
    if nonfinite and dtype == BF16 and kind in (F32, F64):
        after.view(_bits(2)).masked_fill_(after.isnan(), -1)
    far = int((before.abs() > LARGEST).sum()) if dtype == E4M3 else 0
    if nonfinite and dtype != E4M3:
        far = nonfinite - int((~before.isfinite()).sum())
    work.loss.zeroed += int(before.count_nonzero()) - _nonzero(after, dtype)
    if total.lossy:
        work.loss.beyond += far
    else:
        work.loss.overflowed += far
        work.loss.cast += far


def _nonfinite(values: torch.Tensor, dtype: Dtype) -> int:
    """How many elements are infinite or NaN."""
    size = dtype.bits // 8
    exponent = {E4M3: 0x7F, E5M2: 0x7C, BF16: 0x7F80}.get(dtype, 0x7C00 if size == 2 else 0x7F800000)
    least = {1: 0x7F, 2: 0x7FFF}.get(size, 0x7FFFFFFF)
    return int(((values.view(_bits(size)) & least) >= exponent).count_nonzero())


def _nonzero(values: torch.Tensor, dtype: Dtype) -> int:
    """How many elements are not zero, of either sign."""
    return int((values.view(_bits(1)) & 0x7F).count_nonzero() if dtype.bits == 8 else values.count_nonzero())


def _bits(size: int) -> torch.dtype:
    import torch

    return {1: torch.uint8, 2: torch.int16, 4: torch.int32}[size]
