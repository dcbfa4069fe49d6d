"""Tiles of a product of two thin matrices: added to a sum by the block law, or exactly, to undo one.

Exactly: the factors are rounded to integers times powers of two, of 15 bits, or of 24 times the halves of 24. Sums
of up to 2**16 such products are exact in float64, in any order, so they are the same on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..lazy.low_rank import LowRank
from ..lazy.tensor import Tensor, narrow
from .tiles import COLUMNS, INNER, ROWS, Area, even, floats, matrix

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: LowRank, area: Area, work: Workspace) -> None:
    """Add `scale * left @ right` to the tiles of `area`: the inner dimension in chunks, in order."""
    height, width = values.shape
    rank, kind = delta.right.shape[0], values.dtype
    for k in range(0, rank, INNER):
        stop = min(k + INNER, rank)
        right = _right(delta, k, stop, area.column, area.column + width, kind, work)
        left = floats(delta.left, Area(area.row, area.tall, k, stop - k), (height, stop - k), kind, work, "left")
        for c in range(0, width, COLUMNS):
            part = right[:, c : c + COLUMNS]
            part = even(part) if kind.itemsize == 8 else part
            for r in range(0, height, ROWS):
                tile, rows = values[r : r + ROWS, c : c + COLUMNS], left[r : r + ROWS]
                if kind.itemsize == 8:
                    tile.add_((rows @ part)[:, :COLUMNS], alpha=delta.scale)
                else:
                    tile.addmm_(rows, part, alpha=delta.scale)


def exactly(delta: LowRank, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64."""
    import torch

    rank = delta.left.shape[-1]
    left = floats(delta.left, Area(row, tall, 0, rank), (tall, rank), torch.float64, work, "left").mul_(delta.scale)
    left = integers(left, 1, 24 if fine else 15)

    def columns(begin: int, end: int) -> torch.Tensor:
        halves = [half[:, begin - at : end - at] for half, at in _halves(delta, begin, end, work, fine=fine)]
        made = torch.mm(left, halves[0], out=matrix(work, "product", (tall, end - begin), torch.float64))
        for half in halves[1:]:
            made.add_(left @ half)
        return made

    return columns


def _right(delta: LowRank, first: int, stop: int, begin: int, end: int, kind: Any, work: Workspace) -> torch.Tensor:
    """Rows [first, stop) and columns [begin, end) of the right factor; there may be up to a tile beyond its last."""
    right, (rank, columns) = delta.right, delta.right.shape

    def whole() -> list[torch.Tensor]:
        return [floats(right, Area(0, rank, 0, columns), (rank, columns + COLUMNS), kind, work, "")]

    if found := work.tensors(f"right {kind}", delta, rank * (columns + COLUMNS) * kind.itemsize, whole):
        return found[0][first:stop, begin:end]
    wide = min(end, columns) - begin
    part = narrow(narrow(right, 0, first, stop - first), 1, begin, wide)
    return floats(part, Area(0, stop - first, 0, wide), (stop - first, end - begin), kind, work, "right")


def _halves(delta: LowRank, begin: int, end: int, work: Workspace, *, fine: bool) -> list[tuple[torch.Tensor, int]]:
    """The right factor as integers, at least columns [begin, end): (matrix, its first column) each."""
    rank, columns = delta.right.shape
    size = rank * columns * 8 * (2 if fine else 1)
    found = work.tensors(f"halves {fine}", delta, size, lambda: _halved(delta.right, 0, columns, work, fine=fine))
    if found is None:
        return [(half, begin) for half in _halved(delta.right, begin, end, work, fine=fine)]
    return [(half, 0) for half in found]


def _halved(right: Tensor, begin: int, end: int, work: Workspace, *, fine: bool) -> list[torch.Tensor]:
    """Columns [begin, end) of a right factor as integers of 15 bits, or as two that make one of 24, times powers of
    two.
    """
    import torch

    rank, wide = right.shape[0], end - begin
    part = narrow(right, 1, begin, wide)
    values = floats(part, Area(0, rank, 0, wide), (rank, wide), torch.float64, work, "")
    values = integers(values, 0, 24 if fine else 15)
    if not fine:
        return [values]
    high = integers(values, 0, 12)
    return [high, values - high]


def integers(values: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """Float64 values rounded to integers of `bits` bits times a power of two, which is one along `axis`."""
    import torch

    unit = (values.abs().amax(axis, keepdim=True).view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    unit = torch.where(unit == 0, 1.0, unit * 2.0 ** (1 - bits))
    return torch.round_(values / unit).mul_(unit)
