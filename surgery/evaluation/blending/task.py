"""Task arithmetic: what each model is less the base, by its weight, is added to the base. The methods that make some of
it zero before, and that let each element's majority of signs decide, end here as well.

    delta[i]  = weight[i] * sparse(model[i] - base)
    result    = base + lambda * sum(delta) / sum(weight), or without that division
    by signs  : of each element the deltas of the sign of their sum alone, and the weights of these
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..row_blocks import Block
from .method import Method

if TYPE_CHECKING:
    import torch

Sparse = Callable[[Block, Sequence["torch.Tensor"]], Sequence["torch.Tensor"]]
EACH = {"weight": 1.0}
SHARED = {"lambda": 1.0, "normalize": 0.0}


def as_they_are(block: Block, deltas: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Nothing is made zero."""
    return deltas


def rows_of(sparse: Sparse, *, by_signs: bool) -> Callable[[Block], torch.Tensor]:
    """The law with these sparse deltas."""
    return lambda block: combined(block, sparse(block, block.deltas(block.numbers["many"])), by_signs=by_signs)


def combined(block: Block, deltas: Sequence[torch.Tensor], *, by_signs: bool) -> torch.Tensor:
    """The base and what is left of the deltas, by weights."""
    import torch

    said = block.each("weight", len(deltas))
    weights = torch.tensor(said, dtype=block.base.dtype).view(-1, *[1] * block.base.dim())
    scaled = torch.stack(list(deltas)).mul_(weights)
    if by_signs:
        agree = agreeing(scaled)
        scaled, divisor = scaled.mul_(agree), (weights * agree).sum(0)
        divisor = torch.where(divisor == 0, 1, divisor)
    else:
        divisor = weights.sum(0)
        divisor = torch.where(divisor.abs() < 1e-8, 1, divisor)
    mixed = scaled.sum(0)
    if block.numbers["normalize"]:
        mixed /= divisor
    if block.numbers["lambda"] != 1:
        mixed *= block.numbers["lambda"]
    return block.base + mixed


def agreeing(deltas: torch.Tensor) -> torch.Tensor:
    """Where a delta has the sign of the sum of all; of a sum that is zero, the positive ones."""
    majority = (deltas.sum(0) >= 0).to(deltas.dtype) * 2 - 1
    return deltas.sign() == majority


METHODS = {
    "task_arithmetic": Method(
        "the base, and what each model is more than it, by weights",
        rows_of(as_they_are, by_signs=False),
        each=EACH,
        shared=SHARED,
    )
}
