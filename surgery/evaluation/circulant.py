"""Tiles of circulant blocks: a gather, the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy.circulant import Circulant
from ..lazy.tensor import reshape
from .tiles import Area, floats

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Circulant, area: Area, work: Workspace) -> None:
    """Add the blocks to the elements of `area`, in the corner of `values`."""
    values[: area.tall, : area.wide].add_(_tile(delta, area, values.dtype, work))


def exactly(delta: Circulant, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64."""
    import torch

    return lambda begin, end: _tile(delta, Area(row, tall, begin, end - begin), torch.float64, work)


def _tile(delta: Circulant, area: Area, kind: Any, work: Workspace) -> torch.Tensor:
    """The elements of `area`."""
    import torch

    down, along, size = delta.kernel.shape
    rows = torch.arange(area.row + delta.row, area.row + delta.row + area.tall)
    columns = torch.arange(area.column + delta.column, area.column + delta.column + area.wide)
    first, last = int(rows[0]) // size, int(rows[-1]) // size + 1
    part, flat = Area(first, last - first, 0, along * size), reshape(delta.kernel, (down, along * size))
    kernel = floats(flat, part, (part.tall, part.wide), kind, work, "kernel")
    begins = (rows // size - first)[:, None] * part.wide + columns // size * size
    return kernel.view(-1)[begins + (columns - rows[:, None]) % size].mul_(delta.scale)
