"""NearSwap: the other model where it is near to the base, and towards it where it is not.

by = min(1, t / |base - model|);   by * model + (1 - by) * base
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block
from .method import Method

if TYPE_CHECKING:
    import torch

LEAST = 1e-6


def rows(block: Block) -> torch.Tensor:
    """The law."""
    base, model = block.values
    by = (block.numbers["t"] / (base - model).abs().clamp(min=LEAST)).clamp(min=0, max=1)
    return by * model + (1 - by) * base


METHODS = {"nearswap": Method("the model where it is near to the base", rows, most=1, shared={"t": None})}
