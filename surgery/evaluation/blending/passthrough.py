"""Passthrough: one model as it is, times `scale`: what stacks of layers of several models are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block
from .method import Base, Method

if TYPE_CHECKING:
    import torch


def rows(block: Block) -> torch.Tensor:
    """scale * model."""
    return block.values[0] * block.numbers["scale@0"]


METHODS = {"passthrough": Method("one model as it is, or scaled", rows, Base.NONE, most=1, each={"scale": 1.0})}
