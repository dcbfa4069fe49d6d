"""Tiles of a base times small matrices: added to a sum block of columns by block, each a product of constant shape."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.turned import Turned
from .arithmetic import torch_dtype
from .low_rank import integers
from .tiles import ROWS, Area, even, floats

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace


def add(values: torch.Tensor, delta: Turned, area: Area, work: Workspace) -> None:
    """Add it to the tiles of `area`: whole blocks are made, of which the columns that are asked for are taken."""
    edge, columns = delta.edge, delta.base.shape[-1]
    wide = min(area.column + values.shape[1], columns) - area.column
    first, last = area.column // edge, -(-(area.column + wide) // edge)
    part = Area(area.row, area.tall, first * edge, (last - first) * edge)
    base = floats(delta.base, part, (values.shape[0], part.wide), values.dtype, work, "turned")
    for low, high, run in _runs(delta, area):
        blocks = even(_blocks(delta, run, first, last, work).to(values.dtype))
        for r in range(low // ROWS * ROWS, high, ROWS):
            rows = slice(max(r, low) - r, min(r + ROWS, high) - r)
            for which in range(first, last):
                at = (which - first) * edge
                made = base[r : r + ROWS, at : at + edge] @ blocks[which - first if len(blocks) > 1 else 0]
                begin, end = max(which * edge, area.column), min((which + 1) * edge, area.column + wide)
                target = values[r : r + ROWS, begin - area.column : end - area.column]
                target[rows].add_(made[rows, begin - which * edge : end - which * edge], alpha=delta.scale)


def exactly(delta: Turned, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64. Its base is what is there."""
    import torch

    edge, columns, bits = delta.edge, delta.base.shape[-1], 24 if fine else 15
    base = floats(delta.base, Area(row, tall, 0, columns), (tall, columns), torch.float64, work, "").mul_(delta.scale)
    base = integers(base.view(tall, -1, edge), 2, bits)

    def made(first: int, last: int) -> torch.Tensor:
        value = torch.zeros(tall, last - first, edge, dtype=torch.float64)
        for low, high, run in _runs(delta, Area(row, tall, 0, columns)):
            blocks = integers(_blocks(delta, run, first, last, work).double(), 1, bits)
            high_half = integers(blocks, 1, 12) if fine else blocks
            for half in (high_half, blocks - high_half) if fine else (blocks,):
                value[low:high] += torch.einsum(
                    "rnk,nkj->rnj", base[low:high, first:last], half.expand(last - first, -1, -1)
                )
        return value.view(tall, -1)

    def columns_of(begin: int, end: int) -> torch.Tensor:
        first, last = begin // edge, -(-end // edge)
        return made(first, last)[:, begin - first * edge : end - first * edge]

    return columns_of


def _runs(delta: Turned, area: Area) -> list[tuple[int, int, int]]:
    """Rows [low, high) of the area that are of one run, and which run that is."""
    runs = delta.blocks.shape[0]
    tall = delta.base.size // delta.base.shape[-1] // runs
    first, last = area.row // tall, -(-(area.row + area.tall) // tall)
    return [
        (max(run * tall, area.row) - area.row, min((run + 1) * tall, area.row + area.tall) - area.row, run)
        for run in range(first, last)
    ]


def _blocks(delta: Turned, run: int, first: int, last: int, work: Workspace) -> torch.Tensor:
    """The blocks [first, last) of a run, or its one."""
    import torch

    _, count, edge, _ = delta.blocks.shape
    begin, end = (first, last) if count > 1 else (0, 1)
    size, of = edge * edge, delta.blocks
    raw = work.buffer("blocks", (end - begin) * size * of.dtype.bits // 8)
    work.fill(of, (run * count + begin) * size, (run * count + end) * size, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(of.dtype)).view(-1, edge, edge)
