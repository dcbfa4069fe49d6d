"""Elements of a `Sum`, computed in torch by the block law:

    float32 tiles of 64 rows and 1024 columns, of which a smaller rest is padded; the inner dimension in chunks of at
    most 256, in order; one torch thread per worker; full float32 precision

`torch.mm` of a part of a matrix is in general not bit-equal to the same part of the whole; tiles of constant shape
are, in float64 those that `tiles.even` makes, so the bytes depend neither on the number of workers, nor on the memory
budget, nor on which rows and columns are asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..lazy.dtypes import F16, F64
from ..lazy.tensor import Sum
from .arithmetic import one_thread, torch_dtype
from .casts import fill_cast
from .kinds import added, applied
from .losses import broken, overflow, rounded_away, samples, usual
from .tiles import BAND, COLUMNS, ROWS, TILES, Area, areas, columns_of, padded

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_sum(total: Sum, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of a sum."""
    if total.is_cast:
        fill_cast(total, start, stop, out, work)
        return
    item = total.dtype.bits // 8
    for at, end, area in areas(start, stop, columns_of(total)):
        _compute(total, at, end, area, out[(at - start) * item : (end - start) * item], work)


def _compute(total: Sum, start: int, stop: int, area: Area, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop) of a sum: those of `area`, whole rows or a part of one row."""
    import torch

    one_thread()
    base = _base(total, start, stop, out, work).view(area.tall, area.wide)
    result = torch.frombuffer(out, dtype=torch_dtype(total.dtype)).view(area.tall, area.wide)
    kind = torch.float64 if F64 in (total.dtype, total.base.dtype) else torch.float32
    buffer = torch.frombuffer(work.buffer("tiles", TILES * kind.itemsize), dtype=kind)
    high = min(1024, TILES // padded(min(area.wide, BAND), COLUMNS) // ROWS * ROWS)
    for part, rows, columns in area.parts(high):
        shape = padded(part.tall, ROWS), padded(part.wide, COLUMNS)
        values = buffer[: shape[0] * shape[1]].view(shape)
        values[: part.tall, : part.wide].copy_(base[rows, columns])
        for delta in total.deltas:
            added(delta).add(values, delta, part, work)
        if total.gain:
            applied(total.gain).scale(values, total.gain, part, work)
        _round(total, part, base[rows, columns], values[: part.tall, : part.wide], result[rows, columns], work)


def _base(total: Sum, start: int, stop: int, out: memoryview, work: Workspace) -> torch.Tensor:
    """The base's elements, where the result will lie if that is of their dtype."""
    import torch

    same = total.base.dtype == total.dtype
    raw = out if same else work.buffer(f"base {work.depth}", (stop - start) * total.base.dtype.bits // 8)
    work.fill_under(total.base, start, stop, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(total.base.dtype))


def _round(
    total: Sum, area: Area, base: torch.Tensor, made: torch.Tensor, result: torch.Tensor, work: Workspace
) -> None:
    """Round what was `made` into `result`, which may lie where the base does, and count what that does to it."""
    watched = bool(total.deltas or total.gain) and not work.depth
    looked = samples(area.row, area.tall, total.size // columns_of(total)) if watched else []
    before = [base[few].to(made.dtype, copy=True) for few in looked]
    near = usual(made)
    if not near:
        work.loss.overflowed += overflow(base, made.to(result.dtype))
        work.loss.broken += broken(base) if watched else 0
    result.copy_(made)
    if near and total.dtype == F16 and not math.isfinite(float(result.sum())):
        work.loss.overflowed += overflow(made, result)
    for few, old in zip(looked, before, strict=True):
        work.loss += rounded_away(old, made[few], result[few])
