"""Linear: the mean of the models by their weights, or, not normalised, their sum."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block
from .method import Base, Method
from .sums import weighted

if TYPE_CHECKING:
    import torch


def rows(block: Block) -> torch.Tensor:
    """sum(weight * model) / sum(weight)."""
    weights = block.each("weight", len(block.values))
    total = weighted(block.values, weights)
    return total.div_(sum(weights)) if block.numbers["normalize"] else total


METHODS = {"linear": Method("the mean by weights", rows, Base.NONE, each={"weight": None}, shared={"normalize": 1.0})}
