"""Measuring: how far the second of two tensors is from the first, in one pass over both.

Floats of 16 and 32 bits are subtracted in float32, which is exact for neighbours of 16 bits, and summed in float64.
Where a part holds NaN or infinity, or numbers that float32 has no room for, that part is looked at in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy.dtypes import BF16, F16, F32
from ..lazy.tensor import Tensor
from .arithmetic import TORCH_NAMES, exact
from .compare import PRECISION, bits, chunks, comparing, distance
from .workspace import Workspace

if TYPE_CHECKING:
    import torch

SIGNED = (
    *PRECISION,
    "F8_E5M2",
    "F8_E4M3",
    "F8_E5M2FNUZ",
    "F8_E4M3FNUZ",
)  # sign and magnitude, so that bits can be counted
FAST = (F16, BF16, F32)


@dataclass(frozen=True, slots=True)
class Measure:
    """How far the second of two tensors is from the first. `nonfinite` elements differ by NaN or infinity, and are
    in none of the differences; `relative` is ||a - b|| / ||a||, None where a is zero; `ulps` is None for dtypes that
    have none in common.
    """

    elements: int
    differing: int
    largest: float
    mean: float
    relative: float | None
    ulps: int | None
    nonfinite: int = 0

    @property
    def share(self) -> float:
        """Of the elements, those that differ."""
        return self.differing / self.elements if self.elements else 0.0


@dataclass
class _Tally:
    """Sums over the parts that were looked at so far."""

    differing: int = 0
    nonfinite: int = 0
    ulps: int = 0
    largest: float = 0.0
    total: float = 0.0
    squares: float = 0.0
    norm: float = 0.0


def measure(first: Tensor, second: Tensor, work: Workspace) -> Measure | None:
    """How far two tensors of one shape are apart; None where torch has no such dtype."""
    if any(t.dtype.name not in TORCH_NAMES for t in (first, second)):
        return None
    alike = first.dtype == second.dtype
    counted = alike and (first.dtype in SIGNED or first.dtype.name in SIGNED)
    fast = alike and first.dtype in FAST
    tally = _Tally()
    with exact(), comparing((first, second), work) as pair:  # of several threads, each would have too little to do
        for a, b in chunks(pair, work):
            if not (fast and _quickly(a, b, tally)):
                _slowly(a, b, tally, alike=alike, counted=counted)
    relative = (tally.squares / tally.norm) ** 0.5 if tally.norm else None
    mean = tally.total / max(1, first.size - tally.nonfinite)
    ulps = tally.ulps if counted else None
    return Measure(first.size, tally.differing, tally.largest, mean, relative, ulps, tally.nonfinite)


def _quickly(a: torch.Tensor, b: torch.Tensor, tally: _Tally) -> bool:
    """Add what is to be said of a part in float32; False, and nothing is added, where that has no room for it."""
    import torch

    x = a.to(torch.float32)
    norm = float(torch.linalg.vector_norm(x, dtype=torch.float64)) ** 2
    other = int((bits(a) != bits(b)).count_nonzero())
    if not math.isfinite(norm):
        return False
    if not other:
        tally.norm += norm
        return True
    y = b.to(torch.float32)
    apart = (x - y).abs_()
    total = float(apart.sum(dtype=torch.float64))
    if not math.isfinite(total):
        return False
    most = int(apart.argmax())
    tally.norm += norm
    tally.differing += other
    tally.total += total
    tally.squares += float(torch.linalg.vector_norm(apart, dtype=torch.float64)) ** 2
    tally.largest = max(tally.largest, abs(float(x[most]) - float(y[most])))
    tally.ulps = max(tally.ulps, _steps(a, b))
    return True


def _steps(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest number of steps between two values of one dtype of up to 32 bits, through all of its values."""
    import torch

    places = []
    for values in (a, b):
        held = bits(values).to(torch.int32 if values.element_size() == 2 else torch.int64)
        size = held & ((1 << (8 * values.element_size() - 1)) - 1)
        sign = held >> 31
        places.append((size ^ sign) - sign)
    low, high = torch.aminmax(places[0].sub_(places[1]))
    return max(-int(low), int(high))


def _slowly(a: torch.Tensor, b: torch.Tensor, tally: _Tally, *, alike: bool, counted: bool) -> None:
    """Add what is to be said of a part, in float64."""
    import torch

    x, y = _double(a), _double(b)
    other = bits(a) != bits(b) if alike else x != y
    apart = (x - y).abs()
    finite = torch.isfinite(apart)
    tally.differing += int(other.sum())
    tally.nonfinite += int((~finite & other).sum())
    apart = apart.where(finite, 0)
    size = x.abs()
    tally.largest = max(tally.largest, float(apart.max()))
    tally.total += float(apart.sum())
    tally.squares += float((apart * apart).sum())
    tally.norm += float((size * size).where(torch.isfinite(size), 0).sum())
    tally.ulps = max(tally.ulps, distance(a[finite & other], b[finite & other])) if counted else 0


def _double(values: torch.Tensor) -> torch.Tensor:
    import torch

    if values.is_complex():
        return values.to(torch.complex128)
    return (values.to(torch.float32) if values.element_size() == 1 and values.is_floating_point() else values).to(
        torch.float64
    )
