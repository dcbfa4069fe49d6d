"""What is said of one tensor of a merge, and how far rounding may lead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from ..errors import printable
from ..evaluation.compare import ulp
from ..lazy.dtypes import F32, Dtype

if TYPE_CHECKING:
    import torch

SUM_ULPS, DELTA_ULPS, ORDER_ULPS = 4, 2, 16


class Verdict(StrEnum):
    """What is said of one tensor."""

    EXACT = "exact"
    ROUNDED = "rounded"
    KEPT = "kept"
    TIED = "tied"
    NOT_APPLIED = "never applied"
    SCALED = "scaled"
    TRANSPOSED = "transposed"
    WRONG = "wrong"
    CHANGED = "changed"
    MISSING = "missing"
    ADDED = "added"
    UNLIKE = "unlike"
    RECODED = "coded again"
    ERASED = "coded again, and lost"


RIGHT = frozenset({Verdict.EXACT, Verdict.ROUNDED, Verdict.KEPT, Verdict.TIED, Verdict.RECODED})


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of one tensor. `differing` of its `elements` are not what one rounding gives, `beyond` of these
    by more than rounding explains; by at most `ulps`, which are those of the stored dtype at the larger of |W| and
    |E|. `factor` is that of a scaled one: how often its delta was applied; of one that is coded again, what of it
    survives.
    """

    name: str
    verdict: Verdict
    elements: int = 0
    differing: int = 0
    ulps: int = 0
    beyond: int = 0
    factor: float | None = None
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong with it."""
        return self.verdict in RIGHT

    def __str__(self) -> str:
        match self.verdict:
            case Verdict.ROUNDED:
                said = (
                    f"differs by rounding in {self.differing} of {self.elements} elements, by at most {self.ulps} ulps"
                )
            case Verdict.SCALED:
                said = f"applied {self.factor:.4g} times: twice, or with another alpha, rank or weight"
            case Verdict.RECODED | Verdict.ERASED:
                said = f"{self.verdict}: {self.differing} of {self.elements} codes are others than the nearest"
            case Verdict.WRONG if self.beyond and not self.ulps:
                said = f"wrong: {self.beyond} of {self.elements} elements are not what the nearest codes mean"
            case Verdict.WRONG | Verdict.CHANGED:
                said = f"{self.verdict}: {self.differing} of {self.elements} elements differ, by up to {self.ulps} ulps"
            case _:
                said = str(self.verdict)
        return f"{printable(self.name)}: {said}{f' ({self.detail})' if self.detail else ''}"


def rounding(
    before: torch.Tensor,
    after: torch.Tensor,
    delta: torch.Tensor,
    columns: int,
    sums: Sequence[Dtype],
    deltas: Sequence[Dtype],
) -> torch.Tensor:
    """How far from E rounding may lead, element by element, where sums and deltas may have been rounded to these."""
    import torch

    rows = delta.abs().view(-1, columns if len(delta) % columns == 0 else len(delta))
    largest = rows.amax(1, keepdim=True).expand_as(rows).reshape(-1)
    size = torch.maximum(before.abs(), after.abs())
    return SUM_ULPS * ulp(size, sums) + DELTA_ULPS * ulp(largest, deltas) + ORDER_ULPS * ulp(largest, (F32,))
