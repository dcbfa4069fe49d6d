"""Tiles of constant shape, of which sums are made, and the factors of deltas as float matrices. Part of the block
law: `sums.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..lazy.tensor import Tensor
from .arithmetic import torch_dtype
from .read import SPAN

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

ROWS, COLUMNS, INNER = 64, 1024, 256
EVEN = 48  # columns: what the widths of all kernels divide
BAND = 4 * COLUMNS  # columns that are worked on at once
TILES = ROWS * BAND  # elements that are worked on at once, in float32: 64 rows of 4096 columns, or more rows of fewer


@dataclass(frozen=True, slots=True)
class Area:
    """Rows [row, row + tall) and columns [column, column + wide) of a tensor whose leading axes are one."""

    row: int
    tall: int
    column: int
    wide: int

    def parts(self, high: int) -> Iterator[tuple[Area, slice, slice]]:
        """The parts of at most `high` rows and a band of columns, each with where its rows and columns lie in this
        one.
        """
        for c in range(0, self.wide, BAND):
            wide = min(BAND, self.wide - c)
            for r in range(0, self.tall, high):
                tall = min(high, self.tall - r)
                yield Area(self.row + r, tall, self.column + c, wide), slice(r, r + tall), slice(c, c + wide)


def areas(start: int, stop: int, columns: int) -> Iterator[tuple[int, int, Area]]:
    """[start, stop) cut into a part of a row, whole rows, and a part of a row, as far as there are any: (start,
    stop, area).
    """
    head = min(-(-start // columns) * columns, stop)
    tail = max(stop // columns * columns, head)
    for a, b in ((start, head), (head, tail), (tail, stop)):
        if a < b:
            tall = max(1, (b - a) // columns)
            yield a, b, Area(a // columns, tall, a % columns, (b - a) // tall)


def padded(size: int, tile: int) -> int:
    """The next multiple of `tile`."""
    return -(-size // tile) * tile


def even(right: torch.Tensor) -> torch.Tensor:
    """Matrices to be multiplied by, with so many columns of zeros behind their own that each element of a product is
    the same bit for bit wherever in it it lies.

    Kernels compute a number of columns at once, and on some processors the few that are left at the end in another
    order: so none are.
    """
    columns = right.shape[-1]
    made = right.new_zeros(*right.shape[:-1], padded(columns, EVEN))
    made[..., :columns].copy_(right)
    return made


def columns_of(tensor: Tensor) -> int:
    """How many elements a row of it has."""
    return tensor.shape[-1] if tensor.shape else 1


def matrix(work: Workspace, use: str, shape: tuple[int, int], kind: Any) -> torch.Tensor:
    """A matrix in the workspace's memory for `use`."""
    import torch

    return torch.frombuffer(work.buffer(use, shape[0] * shape[1] * kind.itemsize), dtype=kind).view(shape)


def floats(tensor: Tensor, part: Area, shape: tuple[int, int], kind: Any, work: Workspace, use: str) -> torch.Tensor:
    """`part` of a factor, as float32 or float64 in the corner of zeros of `shape`.

    With `use` it lies in that buffer of the workspace, until the next call; without, in memory of its own.
    """
    import torch

    columns = tensor.shape[-1]
    value = matrix(work, use, shape, kind) if use else torch.empty(shape, dtype=kind)
    value[part.tall :].zero_()
    value[:, part.wide :].zero_()
    step = max(1, SPAN // (columns * tensor.dtype.bits // 8))
    for first in range(part.row, part.row + part.tall, step):
        stop = min(first + step, part.row + part.tall)
        raw = work.buffer("factor", (stop - first) * columns * tensor.dtype.bits // 8)
        work.fill(tensor, first * columns, stop * columns, raw)
        rows = torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).view(-1, columns)
        value[first - part.row : stop - part.row, : part.wide].copy_(rows[:, part.column : part.column + part.wide])
    return value
