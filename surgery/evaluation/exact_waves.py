"""Waves with the same bits on every machine, to undo them: a Fourier transform in whole numbers.

Numbers are rounded to so many units that all of them together are at most 2**29, cosines and sines to 2**-22. Then
each sum below is of whole numbers, and less than 2**53: exact in float64, in any order, whoever multiplies matrices.
A row of a * b columns is transformed in two steps, of a and of b numbers each; with v = v1 * b + v2 and q = q1 + a * q2

    x[q1, q2] = Σ_v2 turn(q2 v2 / b) turn(q1 v2 / ab) Σ_v1 turn(q1 v1 / a) z[v1, v2]
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from ..lazy.waves import Waves
from .places import every
from .tiles import ROWS

if TYPE_CHECKING:
    import torch

    from .kinds import Columns
    from .workspace import Workspace

ALL, FINE = 29, 22  # bits of all numbers together, and of a cosine
WIDEST = 4096  # edge of the larger of the two steps' matrices
_DIGITS = 96  # bits of the cosines that are rounded


def exactly(delta: Waves, row: int, tall: int, work: Workspace, *, fine: bool) -> Columns:
    """Rows [row, row + tall): the columns that are asked for, in float64; zeros where a row's length is a prime, or
    nearly, too large for that.
    """
    import torch

    height, wide = delta.whole
    first = delta.row + row
    if wide // _smaller(wide) > WIDEST:
        return lambda begin, end: torch.zeros((tall, end - begin), dtype=torch.float64)
    down, along, numbers = every(delta, work)
    unit = 2.0 ** (math.frexp(math.fsum(numbers.abs().tolist()))[1] - ALL)
    entries = down, along, (numbers / unit).round()
    parts = [
        _transformed(_spectra(entries, first + at, min(ROWS, tall - at), height, wide)) for at in range(0, tall, ROWS)
    ]
    rows = torch.cat(parts).mul_(unit * 2.0**-FINE * (delta.scale / height / wide))
    return lambda begin, end: rows[:, delta.column + begin : delta.column + end].clone()


def _spectra(
    entries: tuple[torch.Tensor, torch.Tensor, torch.Tensor], row: int, count: int, height: int, wide: int
) -> list[torch.Tensor]:
    """The spectrum along each of rows [row, row + count), real and imaginary: (count, wide), in units."""
    import torch

    down, along, numbers = entries
    turns = down[:, None] * torch.arange(row, row + count) % height
    found = []
    for wave in circle(height):
        total = torch.zeros((wide, count), dtype=torch.float64)
        found.append(_units(total.index_add_(0, along, wave[turns].mul_(numbers[:, None]))).T.contiguous())
    return found


def _transformed(spectra: list[torch.Tensor]) -> torch.Tensor:
    """The real part of the sums of each row, times 2**FINE."""
    import torch

    count, wide = spectra[0].shape
    a = _smaller(wide)
    b = wide // a
    down, along = torch.arange(a), torch.arange(b)
    real, imaginary = (part.view(count, a, b) for part in spectra)
    cos, sin = _turns(wide, down[:, None] * down * b)
    real, imaginary = _units(cos @ real - sin @ imaginary), _units(cos @ imaginary + sin @ real)
    cos, sin = _turns(wide, down[:, None] * along)
    real, imaginary = _units(real * cos - imaginary * sin), _units(imaginary * cos + real * sin)
    cos, sin = _turns(wide, along[:, None] * along * a)
    return (real @ cos - imaginary @ sin).transpose(1, 2).reshape(count, wide)


def _units(values: torch.Tensor) -> torch.Tensor:
    return values.mul_(2.0**-FINE).round_()


def _turns(count: int, which: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = circle(count)
    return cos[which % count], sin[which % count]


def _smaller(count: int) -> int:
    """The largest factor that is not above the square root."""
    return next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)


@lru_cache(4)
def circle(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """2**FINE times cosine and sine of each of `count` equal parts of a turn, in whole numbers, by whole numbers."""
    import torch

    half = 1 << _DIGITS - FINE - 1
    points = [(x + half >> _DIGITS - FINE, y + half >> _DIGITS - FINE) for x, y in _around(count)]
    x, y = torch.tensor(points, dtype=torch.float64).T.contiguous()
    return x, y


def _around(count: int) -> list[tuple[int, int]]:
    """The points, each from the one before it by the first turn, in units of 2**-_DIGITS."""
    one = 1 << _DIGITS
    pi = 16 * _arctangent(5) - 4 * _arctangent(239)
    angle = 2 * pi // count
    terms, term, n = [one], one, 1
    while term:
        term = (term * angle >> _DIGITS) // n
        terms.append(term)
        n += 1
    turn = [sum(terms[k::4]) - sum(terms[k + 2 :: 4]) for k in (0, 1)]
    points = [(one, 0)]
    for _ in range(count - 1):
        x, y = points[-1]
        points.append((x * turn[0] - y * turn[1] >> _DIGITS, x * turn[1] + y * turn[0] >> _DIGITS))
    return points


def _arctangent(below: int) -> int:
    """Of 1 / below, in units of 2**-_DIGITS."""
    power, total, n = (1 << _DIGITS) // below, 0, 1
    while power:
        total += power // n if n % 4 == 1 else -(power // n)
        power //= below * below
        n += 2
    return total
