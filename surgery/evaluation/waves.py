"""Tiles of waves: in float64, one row after another, so that it does not matter which rows are asked for.

In row p, the numbers of a column are turned by their rows' waves and added up; one inverse Fourier transform along the
row does the rest. Angles are multiples of whole turns by integers, of which the whole turns are taken out first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..lazy.waves import Waves
from .places import every
from .tiles import ROWS, Area

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def add(values: torch.Tensor, delta: Waves, area: Area, work: Workspace) -> None:
    """Add the waves to the elements of `area`, in the corner of `values`."""
    tall, wide = delta.whole
    entries = every(delta, work)
    first, last = area.column + delta.column, area.column + delta.column + area.wide
    for at in range(0, area.tall, ROWS):
        count = min(ROWS, area.tall - at)
        along = _along_rows(entries, area.row + delta.row + at, count, tall, wide)
        for row, spectrum in enumerate(along, at):
            made = _transformed(spectrum).mul_(delta.scale / tall)
            values[row, : area.wide].add_(made[first:last].to(values.dtype))


def _along_rows(
    entries: tuple[torch.Tensor, torch.Tensor, torch.Tensor], row: int, count: int, tall: int, wide: int
) -> torch.Tensor:
    """The spectrum along each of rows [row, row + count): (count, wide), complex."""
    import torch

    down, along, numbers = entries
    turns = down[:, None] * torch.arange(row, row + count) % tall
    angles = torch.arange(tall, dtype=torch.float64).mul_(2 * math.pi / tall)
    real, imaginary = (torch.zeros((wide, count), dtype=torch.float64) for _ in range(2))
    real.index_add_(0, along, angles.cos()[turns].mul_(numbers[:, None]))
    imaginary.index_add_(0, along, angles.sin()[turns].mul_(numbers[:, None]))
    return torch.complex(real, imaginary).T.contiguous()


def _transformed(spectrum: torch.Tensor) -> torch.Tensor:
    """The real part of the inverse Fourier transform of one row."""
    import torch

    return torch.fft.ifft(spectrum).real.clone()
