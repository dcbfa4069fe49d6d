"""How long a weight is, what is added to it, and how far another tensor is from it: in one pass over all three."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy.dtypes import F32
from ..lazy.tensor import Tensor, in_dtype
from .arithmetic import exact
from .evaluate import settle, workspace_of
from .tiles import ROWS, columns_of
from .workspace import DEFAULT_MEMORY, Workspace

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Lengths:
    """Euclidean lengths: of a weight, of what is added to it, of what another one is off by."""

    weight: float
    added: float
    off: float


def lengths(weight: Tensor, made: Tensor, other: Tensor) -> Lengths:
    """Those of `weight`, of `made` without it, and of `other` without it, all of one shape; computed in float32, and
    summed in float64.
    """
    import torch

    work = workspace_of(DEFAULT_MEMORY)
    with tempfile.TemporaryDirectory() as folder, exact():
        try:
            sides = [settle(in_dtype(tensor, F32), folder, work) for tensor in (weight, made, other)]
            sums = torch.zeros(3, dtype=torch.float64)
            step = max(1, work.window // 4 // columns_of(weight) // ROWS) * ROWS * columns_of(weight)
            for at in range(0, weight.size, step):
                base, now, off = (_read(side, i, at, min(at + step, weight.size), work) for i, side in enumerate(sides))
                for i, part in enumerate((base, now.sub_(base), off.sub_(base))):
                    sums[i] += torch.linalg.vector_norm(part, dtype=torch.float64) ** 2
        finally:
            work.close()
    return Lengths(*sums.sqrt_().tolist())


def _read(tensor: Tensor, which: int, start: int, stop: int, work: Workspace) -> torch.Tensor:
    import torch

    raw = work.buffer(f"length {which}", (stop - start) * 4)
    work.fill(tensor, start, stop, raw)
    return torch.frombuffer(raw, dtype=torch.float32)
