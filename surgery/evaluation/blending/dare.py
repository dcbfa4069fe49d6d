"""Deltas are kept at random, each with the probability `density`: DARE (arXiv 2311.03099), alone or with the majority
of signs; what is left is made as long again as the whole was.

Which are kept follows from the seed, the tensor's name and the model's number: never from torch's generator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from . import task
from .drawn import uniform
from .method import Method, facts_of
from .rescaled import factors, sparse_by

if TYPE_CHECKING:
    import torch


def measure(scan: Scan) -> list[float]:
    """A factor of each model."""
    return factors(scan, kept, [])


def kept(block: Block, which: int, delta: torch.Tensor) -> torch.Tensor:
    """Where the delta is kept."""
    drawn = uniform(key_of(block, which), block.at, delta.numel()).view(delta.shape)
    return drawn < block.numbers[f"density@{which}"]


def key_of(block: Block, which: int) -> str:
    """What is drawn from."""
    return f"{block.numbers['seed']:.0f}\0{which}\0{block.numbers['name']}"


def _method(what: str, *, by_signs: bool) -> Method:
    return Method(
        what,
        task.rows_of(sparse_by(kept), by_signs=by_signs),
        each={**task.EACH, "density": 1.0},
        shared={**task.SHARED, "rescale": 1.0},
        measure=measure,
        facts=facts_of(),
        drawn=True,
    )


METHODS = {
    "dare_linear": _method("deltas kept at random, and rescaled", by_signs=False),
    "dare_ties": _method("the same, of each element those of the sign that most of them have", by_signs=True),
}
