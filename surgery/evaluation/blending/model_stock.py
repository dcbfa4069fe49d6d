"""Model Stock (arXiv 2403.19522): between the base and the mean of the models, as far as the angles between them tell.

    cosine: the mean, over all pairs, of the cosine between what they are more than the base
    t = n * cosine / (1 + (n - 1) * cosine);   t * mean + (1 - t) * base

Of whole tensors, or, with filter_wise=1, of each row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..row_blocks import Block, Scan
from .gram import gram
from .method import Method

if TYPE_CHECKING:
    import torch

LEAST = 1e-6


def _by_rows(numbers: Mapping[str, Any]) -> bool:
    return bool(numbers["filter_wise"])


def measure(scan: Scan) -> list[float]:
    """How far from the base, of the whole."""
    many = scan.numbers["many"]
    if _by_rows(scan.numbers):
        return []
    known, found = gram(scan, lambda block: block.deltas(many)), []
    for i in range(many):
        for j in range(i + 1, many):
            lengths = math.sqrt(known[i][i]) * math.sqrt(known[j][j])
            found.append(max(-1.0, min(1.0, known[i][j] / max(lengths, LEAST))))
    cosine = sum(found) / len(found)
    below = 1 + (many - 1) * cosine
    return [0.0 if abs(below) < LEAST else many * cosine / below]


def _of_rows(deltas: list[torch.Tensor]) -> torch.Tensor:
    """How far from the base, of each row."""
    import torch

    wide, found = [one.double() for one in deltas], []
    for i, one in enumerate(wide):
        for other in wide[i + 1 :]:
            lengths = one.square().sum(1).sqrt() * other.square().sum(1).sqrt()
            found.append(((one * other).sum(1) / lengths.clamp(min=LEAST)).clamp(-1, 1))
    cosine = torch.stack(found).mean(0)
    below = 1 + (len(wide) - 1) * cosine
    singular = below.abs() < LEAST
    return torch.where(singular, 0, len(wide) * cosine / torch.where(singular, 1, below))[:, None]


def rows(block: Block) -> torch.Tensor:
    """Between the base and the mean."""
    by_rows, models = _by_rows(block.numbers), block.values[1:]
    t: Any = _of_rows(block.deltas(len(models))).to(block.base.dtype) if by_rows else block.facts[0]
    mean = models[0].clone()
    for one in models[1:]:
        mean += one
    return mean.div_(len(models)).mul_(t) + block.base * (1 - t)


METHODS = {
    "model_stock": Method(
        "between the base and the mean of the models, by the angles between these",
        rows,
        least=2,
        shared={"filter_wise": 0.0},
        by_rows=_by_rows,
        measure=measure,
        facts=lambda numbers, columns: 0 if _by_rows(numbers) else 1,
    )
}
