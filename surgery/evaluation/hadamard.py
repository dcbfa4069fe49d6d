"""Tiles of the product, element by element, of low ranks and a base: added to a sum, or exactly, to undo one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.hadamard import Hadamard
from . import low_rank
from .tiles import Area, floats, matrix

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Hadamard, area: Area, work: Workspace) -> None:
    """Add the product to the tiles of `area`."""
    height, width = values.shape
    product = matrix(work, "hadamard", (height, width), values.dtype).fill_(delta.scale)
    for one in delta.of:
        tiles = matrix(work, "hadamard of", (height, width), values.dtype).zero_()
        low_rank.add(tiles, one, area, work)
        product.mul_(tiles)
    if delta.base is not None:
        wide = min(area.column + width, delta.base.shape[-1]) - area.column
        part = Area(area.row, area.tall, area.column, wide)
        product.mul_(floats(delta.base, part, (height, width), values.dtype, work, "left"))
    values.add_(product)


def exactly(delta: Hadamard, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64. One with a base follows from no result."""
    import torch

    made = [low_rank.exactly(one, row, tall, work, fine=fine) for one in delta.of]

    def columns(begin: int, end: int) -> torch.Tensor:
        product = matrix(work, "hadamard", (tall, end - begin), torch.float64).fill_(delta.scale)
        for one in made:
            product.mul_(one(begin, end))
        return product

    return columns
