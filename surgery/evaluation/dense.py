"""Tiles of a tensor times a number: added to a sum, or exactly, to undo one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.dense import Dense
from .tiles import Area, floats

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Dense, area: Area, work: Workspace) -> None:
    """Add `scale * value` to the tiles of `area`."""
    wide = min(area.column + values.shape[1], delta.value.shape[-1]) - area.column
    part = Area(area.row, area.tall, area.column, wide)
    values.add_(
        floats(delta.value, part, (values.shape[0], values.shape[1]), values.dtype, work, "left").mul_(delta.scale)
    )


def exactly(delta: Dense, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64."""
    import torch

    def columns(begin: int, end: int) -> torch.Tensor:
        part = Area(row, tall, begin, end - begin)
        return floats(delta.value, part, (tall, end - begin), torch.float64, work, "left").mul_(delta.scale)

    return columns
