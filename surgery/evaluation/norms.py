"""Norms of rows or columns: squares summed in float64, in tiles of constant shape and order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.tensor import Norms
from .arithmetic import torch_dtype
from .tiles import COLUMNS, ROWS

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_norms(norms: Norms, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of row or column norms."""
    import torch

    columns = norms.of.shape[-1]
    sums = torch.zeros(stop - start, dtype=torch.float64)
    first, last = (0, norms.of.size // columns) if norms.columns else (start, stop)
    for row in range(first, last, ROWS):
        values = _rows(norms, row, min(ROWS, last - row), work)
        if norms.columns:
            for line in values[:, start:stop]:
                sums.addcmul_(line, line)
        else:
            _add_squares(values, sums[row - first : row - first + len(values)])
    torch.frombuffer(out, dtype=torch.float32).copy_(sums.sqrt_())


def _rows(norms: Norms, row: int, tall: int, work: Workspace) -> torch.Tensor:
    """Some rows in float64."""
    import torch

    of, columns = norms.of, norms.of.shape[-1]
    raw = work.buffer("norms", tall * columns * of.dtype.bits // 8)
    work.fill(of, row * columns, (row + tall) * columns, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(of.dtype)).view(tall, columns).double()


def _add_squares(values: torch.Tensor, sums: torch.Tensor) -> None:
    """Add the squares of each row, tile by tile."""
    import torch

    tall, columns = values.shape
    for c in range(0, columns, COLUMNS):
        tile = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
        tile[:tall, : min(COLUMNS, columns - c)] = values[:, c : c + COLUMNS]
        sums += tile.square_().sum(1)[:tall]
