"""Deltas are kept at random, the larger the likelier: DELLA (arXiv 2406.11617), with the majority of signs or alone.

In each row, of the last axis, the smallest is kept with the probability density - epsilon, the largest with
density + epsilon, and those between evenly by their rank. What is left is made as long again as the whole was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from . import task
from .dare import key_of
from .drawn import uniform
from .method import Method, always, facts_of
from .rescaled import factors, sparse_by

if TYPE_CHECKING:
    import torch


def measure(scan: Scan) -> list[float]:
    """A factor of each model."""
    return factors(scan, kept, [])


def kept(block: Block, which: int, delta: torch.Tensor) -> torch.Tensor:
    """Where the delta is kept."""
    import torch

    density, epsilon = (block.numbers[f"{name}@{which}"] for name in ("density", "epsilon"))
    if density >= 1 or density <= 0:
        return torch.full_like(delta, density >= 1, dtype=torch.bool)
    ranks = delta.abs().argsort(dim=1, stable=True).argsort(dim=1).float()
    even = ranks / (ranks.shape[1] - 1) if ranks.shape[1] > 1 else torch.full_like(ranks, 0.5)
    drawn = uniform(key_of(block, which), block.at, delta.numel()).view(delta.shape)
    return drawn < density - epsilon + 2 * epsilon * even


def _method(what: str, *, by_signs: bool) -> Method:
    return Method(
        what,
        task.rows_of(sparse_by(kept), by_signs=by_signs),
        each={**task.EACH, "density": 1.0, "epsilon": 0.15},
        shared={**task.SHARED, "normalize": float(by_signs), "rescale": 1.0},
        by_rows=always,
        measure=measure,
        facts=facts_of(),
        drawn=True,
    )


METHODS = {
    "della": _method(
        "larger deltas kept likelier, of each element those of the sign that most of them have", by_signs=True
    ),
    "della_linear": _method("larger deltas kept likelier, and rescaled", by_signs=False),
}
