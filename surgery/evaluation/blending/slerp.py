"""Slerp: from the base to the model along the arc between them, `t` of the way.

    (sin((1 - t) * angle) * base + sin(t * angle) * model) / sin(angle)

Where they are nearly parallel, a line does: |cos(angle)| > 0.9995.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from .gram import gram
from .method import Method
from .sums import weighted

if TYPE_CHECKING:
    import torch

PARALLEL, LEAST = 0.9995, 1e-8


def measure(scan: Scan) -> list[float]:
    """By what the base is multiplied, and the model."""
    known = gram(scan, lambda block: block.values)
    lengths = [length if (length := math.sqrt(known[i][i])) > LEAST else 1.0 for i in range(2)]
    return arc(known[0][1] / (lengths[0] * lengths[1]), scan.numbers["t"])


def arc(cosine: float, t: float) -> list[float]:
    """The two factors."""
    cosine = max(-1.0, min(1.0, cosine))
    if abs(cosine) > PARALLEL or not math.isfinite(cosine):
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def rows(block: Block) -> torch.Tensor:
    """The sum by these factors."""
    return weighted(block.values, block.facts)


METHODS = {
    "slerp": Method(
        "along the arc from the base to the model",
        rows,
        most=1,
        shared={"t": None},
        measure=measure,
        facts=lambda numbers, columns: 2,
    )
}
