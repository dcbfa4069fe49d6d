"""Products of a matrix with a thin one: in float64, in blocks of constant height and order, rounded to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.tensor import Product
from .tiles import ROWS, Area, floats

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_product(product: Product, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop): rows of `of @ by`, or all of `by @ of`, of which a part is taken."""
    import torch

    columns = product.shape[1]
    result = torch.frombuffer(out, dtype=torch.float32)
    if product.left:
        whole = work.last("product", product, lambda: _summed(product, work))
        result.copy_(whole.view(-1)[start:stop])
        return
    by = _whole(product, work)
    first, last = start // columns, -(-stop // columns)
    for row in range(first // ROWS * ROWS, last, ROWS):
        rows = _rows(product, row, work) @ by
        low, high = max(start, row * columns), min(stop, (row + ROWS) * columns)
        result[low - start : high - start].copy_(rows.view(-1)[low - row * columns : high - row * columns])


def _summed(product: Product, work: Workspace) -> torch.Tensor:
    """`by @ of`, summed over blocks of rows."""
    import torch

    by = _whole(product, work)
    total = torch.zeros(product.shape, dtype=torch.float64)
    for row in range(0, product.of.shape[0], ROWS):
        tall = min(ROWS, product.of.shape[0] - row)
        total.addmm_(by[:, row : row + tall], _rows(product, row, work)[:tall])
    return total


def _whole(product: Product, work: Workspace) -> torch.Tensor:
    """The thin matrix."""
    import torch

    by = product.by
    return floats(by, Area(0, by.shape[0], 0, by.shape[1]), (by.shape[0], by.shape[1]), torch.float64, work, "thin")


def _rows(product: Product, row: int, work: Workspace) -> torch.Tensor:
    """Rows from `row` on, as many as a tile has: zeros beyond the last."""
    import torch

    height, columns = product.of.shape
    part = Area(row, min(ROWS, height - row), 0, columns)
    return floats(product.of, part, (ROWS, columns), torch.float64, work, "rows")
