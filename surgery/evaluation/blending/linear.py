"""Linear: the mean of the models by their weights, or, not normalised, their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block
from .method import Base, Method
from .sums import wide

if TYPE_CHECKING:
    import torch


def rows(block: Block) -> torch.Tensor:
    """sum(weight * model) / sum(weight)."""
    weights, first = block.each("weight", len(block.values)), block.values[0]
    total = first.new_zeros(first.shape, dtype=wide(first))
    for model, weight in zip(block.values, weights, strict=True):
        total.add_(model, alpha=weight)
    return total.div_(sum(weights)) if block.numbers["normalize"] else total


METHODS = {"linear": Method("the mean by weights", rows, Base.NONE, each={"weight": 1.0}, shared={"normalize": 1.0})}
