"""Tiles of numbers at places: added one after another, the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.scatter import Scatter
from .places import within
from .tiles import Area, matrix

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Scatter, area: Area, work: Workspace) -> None:
    """Add the numbers that are in `area` to the corner of `values`."""
    rows, columns, numbers = within(delta, area, work)
    values.view(-1).index_add_(0, rows * values.shape[1] + columns, numbers.mul_(delta.scale).to(values.dtype))


def exactly(delta: Scatter, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64."""
    import torch

    def columns(begin: int, end: int) -> torch.Tensor:
        values = matrix(work, "scattered", (tall, end - begin), torch.float64).zero_()
        add(values, delta, Area(row, tall, begin, end - begin), work)
        return values

    return columns
