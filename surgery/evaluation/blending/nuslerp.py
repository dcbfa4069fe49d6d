"""NuSLERP: between two models along the arc, or between what they are more than a base; `t` follows from the weights.

Of whole tensors, or, with nuslerp_flatten=0, of each row of the last axis, with nuslerp_row_wise=1 as well of each
column of the first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..row_blocks import Block, Scan
from .gram import gram, models, onto_base
from .method import Base, Method
from .sums import weighted

if TYPE_CHECKING:
    import torch

LEAST, PARALLEL = 1e-7, 1e-16  # a length that is taken for zero, and a square of the sine


def part_of_way(numbers: Mapping[str, Any]) -> float:
    """How far from the first model to the second."""
    first, second = numbers["weight@0"], numbers["weight@1"]
    return 0.5 if abs(first + second) < 1e-6 else float(second / (first + second))


def _by_rows(numbers: Mapping[str, Any]) -> bool:
    return not numbers["nuslerp_flatten"]


def _along_columns(numbers: Mapping[str, Any]) -> bool:
    return _by_rows(numbers) and bool(numbers["nuslerp_row_wise"]) and int(numbers["axes"]) > 1


def _arc(cosine: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    cosine = cosine.clamp(-1, 1)
    line = (1 - cosine.square()) <= PARALLEL
    angle = torch.acos(torch.where(line, 0, cosine))
    first, second = torch.sin((1 - t) * angle) / torch.sin(angle), torch.sin(t * angle) / torch.sin(angle)
    return torch.where(line, 1 - t, first), torch.where(line, t, second)


def measure(scan: Scan) -> list[float]:
    """The factors of both: two of the whole, or two of each column."""
    import torch

    t = part_of_way(scan.numbers)
    if _along_columns(scan.numbers):
        sums = [torch.zeros(()) for _ in range(3)]
        for block in scan.blocks():
            a, b = (one.double() for one in models(block))
            sums = [total + (x * y).sum(0) for total, (x, y) in zip(sums, ((a, a), (b, b), (a, b)), strict=True)]
        lengths = [total.sqrt().clamp(min=LEAST) for total in sums[:2]]
        return torch.cat(_arc(sums[2] / (lengths[0] * lengths[1]), t)).tolist()
    if _by_rows(scan.numbers):
        return []
    known = gram(scan, models)
    first, second = (max(math.sqrt(known[i][i]), LEAST) for i in range(2))
    return [float(one) for one in _arc(torch.tensor(known[0][1] / first / second, dtype=torch.float64), t)]


def facts(numbers: Mapping[str, Any], columns: int) -> int:
    """How many they are."""
    return 2 * columns if _along_columns(numbers) else 0 if _by_rows(numbers) else 2


def rows(block: Block) -> torch.Tensor:
    """The sum by these factors."""
    import torch

    first, second = models(block)
    if not _by_rows(block.numbers):
        return onto_base(block, weighted([first, second], block.facts))
    if _along_columns(block.numbers):
        by = torch.tensor(block.facts, dtype=first.dtype).view(2, -1)
        return onto_base(block, first * by[0] + second * by[1])
    a, b = first.double(), second.double()
    lengths = [one.square().sum(1, keepdim=True).sqrt().clamp(min=LEAST) for one in (a, b)]
    factors = _arc((a * b).sum(1, keepdim=True) / (lengths[0] * lengths[1]), part_of_way(block.numbers))
    return onto_base(block, first * factors[0].to(first.dtype) + second * factors[1].to(first.dtype))


METHODS = {
    "nuslerp": Method(
        "along the arc between two models, by weights",
        rows,
        Base.ALLOWED,
        least=2,
        most=2,
        each={"weight": 1.0},
        shared={"nuslerp_row_wise": 0.0, "nuslerp_flatten": 1.0},
        by_rows=_by_rows,
        measure=measure,
        facts=facts,
    )
}
