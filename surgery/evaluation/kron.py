"""Tiles of a Kronecker product: each element is one product, the same on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy.kron import Kron
from ..lazy.tensor import Tensor
from .tiles import Area, floats

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Kron, area: Area, work: Workspace) -> None:
    """Add the product to the elements of `area`, in the corner of `values`."""
    values[: area.tall, : area.wide].add_(_tile(delta, area, values.dtype, work))


def exactly(delta: Kron, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64."""
    import torch

    return lambda begin, end: _tile(delta, Area(row, tall, begin, end - begin), torch.float64, work)


def _tile(delta: Kron, area: Area, kind: Any, work: Workspace) -> torch.Tensor:
    """The product's elements in `area`: each step is rounded by itself, however many there are."""
    import torch

    high, broad = delta.right.shape
    rows = torch.arange(area.row + delta.row, area.row + delta.row + area.tall)
    columns = torch.arange(area.column + delta.column, area.column + delta.column + area.wide)
    tile = _rows(delta.left, rows // high, kind, work, "kron left").index_select(1, columns // broad)
    right = _rows(delta.right, rows % high, kind, work, "kron right").index_select(1, columns % broad)
    return tile.mul_(right).mul_(delta.scale)


def _rows(factor: Tensor, rows: torch.Tensor, kind: Any, work: Workspace, use: str) -> torch.Tensor:
    """Rows of a factor, in the order that is asked for; only those between the first and the last are read."""
    tall, wide = factor.shape

    def whole() -> list[torch.Tensor]:
        return [floats(factor, Area(0, tall, 0, wide), (tall, wide), kind, work, "")]

    if found := work.tensors(f"{use} {kind}", factor, tall * wide * kind.itemsize, whole):
        return found[0].index_select(0, rows)
    first, last = int(rows.min()), int(rows.max()) + 1
    part = floats(factor, Area(first, last - first, 0, wide), (last - first, wide), kind, work, use)
    return part.index_select(0, rows - first)
