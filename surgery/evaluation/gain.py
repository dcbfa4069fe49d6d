"""Tiles times the factors of their rows or columns, or divided by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.gain import Gain
from .arithmetic import torch_dtype
from .tiles import Area

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def scale(values: torch.Tensor, gain: Gain, area: Area, work: Workspace, *, undo: bool = False) -> None:
    """Multiply the elements of `area`, in the corner of `values`, by the gain of their rows or columns, or divide
    them by it.
    """
    import torch

    first, count = (area.column, area.wide) if gain.columns else (area.row, area.tall)
    found = []
    for factor in gain.factors:
        raw = work.buffer("gain", count * factor.dtype.bits // 8)
        work.fill(factor, first, first + count, raw)
        found.append(torch.frombuffer(raw, dtype=torch_dtype(factor.dtype)).to(values.dtype, copy=True))
    if gain.norms is None:
        found.append(torch.ones_like(found[0]))
    over, under = reversed(found) if undo else found
    times = over / under
    part = values[:, : area.wide] if gain.columns else values[: area.tall]
    part.mul_(times if gain.columns else times[:, None])
