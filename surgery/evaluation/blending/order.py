"""Which element has a rank among all, without holding them: by two passes over the patterns of their bits, and one that
finds its place among equals.

The pattern of a float32 that is not negative grows with it; with the sign turned, all do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Values = Callable[[], Iterator["torch.Tensor"]]  # float32 blocks of all elements, in order, as often as asked
HALF, LOW = 16, (1 << 16) - 1


@dataclass(frozen=True, slots=True)
class Ranked:
    """The value at a rank, counted from 0 in ascending order, and how many elements are below it, and equal to it."""

    value: float
    below: int
    equal: int


def at_ranks(values: Values, ranks: Sequence[int]) -> list[Ranked]:
    """What stands at these ranks."""
    import torch

    high = torch.zeros(1 << HALF, dtype=torch.int64)
    for block in values():
        high += torch.bincount(_pattern(block) >> HALF, minlength=1 << HALF)
    ends = high.cumsum(0)
    bins = [int(torch.searchsorted(ends, rank, right=True)) for rank in ranks]
    low = {one: torch.zeros(1 << HALF, dtype=torch.int64) for one in bins}
    for block in values():
        pattern = _pattern(block)
        for one, counts in low.items():
            counts += torch.bincount((pattern & LOW)[pattern >> HALF == one], minlength=1 << HALF)
    return [_ranked(rank, one, int(ends[one] - high[one]), low[one]) for rank, one in zip(ranks, bins, strict=True)]


def _ranked(rank: int, which: int, before: int, counts: torch.Tensor) -> Ranked:
    import torch

    ends = counts.cumsum(0) + before
    last = int(torch.searchsorted(ends, rank, right=True))
    equal = int(counts[last])
    return Ranked(_float((which << HALF) | last), int(ends[last]) - equal, equal)


def place_of_equal(values: Values, value: float, which: int) -> int:
    """The place of the element that is number `which`, from 0, of those that are equal to `value`."""
    at, seen = 0, 0
    for block in values():
        equal = block == value
        count = int(equal.sum())
        if seen + count > which:
            return at + int(equal.nonzero()[which - seen])
        at, seen = at + block.numel(), seen + count
    return at


def _pattern(block: torch.Tensor) -> torch.Tensor:
    """Patterns that grow with the values, from 0; -0 is 0."""
    import torch

    bits = (block.to(torch.float32) + 0.0).contiguous().view(torch.int32).to(torch.int64)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + (1 << 31)


def _float(pattern: int) -> float:
    import torch

    signed = pattern - (1 << 31)
    bits = signed ^ 0x7FFFFFFF if signed < 0 else signed
    return float(torch.tensor([bits], dtype=torch.int32).view(torch.float32))
