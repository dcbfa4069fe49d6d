"""Numbers at places of a wavelet's spectrum, as the small patches that they become in the matrix.

One inverse step of the two-dimensional transform: the spectrum is four quarters, each of which is low or high along
either axis, and a number in one of them becomes the outer product of that quarter's two filters, at twice its place.
What PEFT does around it (tuners/waveft/layer.py `get_delta_weight`, waverec2d.py): the matrix lies in the middle of a
spectrum that is larger by the filter's length less two, made even; the right upper quarter is high along the rows'
axis, and the left lower one along the columns'; of the result, its middle is taken.

Filters are computed. Daubechies' are the half-band polynomial's roots inside of the unit circle, symlets are some of
them outside, a Coiflet of six taps is known in closed form (Daubechies, Ten Lectures on Wavelets, chapters 6 and 8).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from .drawn import places_of

if TYPE_CHECKING:
    import torch

# Of symlets, which of the half-band polynomial's roots, in order of how far they are from the real axis, are outside.
_OUTSIDE = {2: (), 3: (), 4: (1,), 5: (0,), 6: (0, 2), 7: (0,), 8: (1, 3), 9: (1, 2), 10: (0, 2, 3)}
_ROOTS: Mapping[str, tuple[int, tuple[int, ...]]] = {
    **{f"db{n}": (n, ()) for n in range(1, 11)},
    **{f"sym{n}": (n, outside) for n, outside in _OUTSIDE.items()},
}
TAPS: Mapping[str, int] = {**{name: 2 * n for name, (n, _) in _ROOTS.items()}, "coif1": 6}


def low(family: str) -> list[float]:
    """The low-pass filter that a wavelet is made up of again with."""
    import numpy

    if family == "coif1":
        s = math.sqrt(7)
        return [tap / 16 / math.sqrt(2) for tap in (1 - s, 5 + s, 14 + 2 * s, 14 - 2 * s, 1 - s, s - 3)]
    order, outside = _ROOTS[family]
    taps = numpy.poly(_roots(order, outside)) if order > 1 else numpy.ones(1)
    for _ in range(order):
        taps = numpy.convolve(taps, [1, 1])
    taps = numpy.real(taps)
    return [float(tap) for tap in taps * math.sqrt(2) / taps.sum()]


def _roots(order: int, outside: Sequence[int]) -> list[complex]:
    """Zeros z of the filter besides -1: of each pair z, 1 / z the one inside of the unit circle, or the other."""
    import numpy

    half_band = numpy.roots([math.comb(order - 1 + k, k) for k in reversed(range(order))])
    upper = sorted((y for y in half_band if y.imag > -1e-9), key=lambda y: (round(abs(y.imag), 9), y.real))
    found = []
    for number, y in enumerate(upper):
        middle, distance = 1 - 2 * y, numpy.sqrt((1 - 2 * y) ** 2 - 1 + 0j)
        inside = min(middle + distance, middle - distance, key=abs)
        root = 1 / inside if number in outside else inside
        found += [root] if abs(y.imag) < 1e-9 else [root, numpy.conj(root)]
    return found


def wavelet_places(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """Rows and columns of all patches: (2, count * taps²). What falls off the matrix is at (0, 0)."""
    import torch

    rows, columns, inside, _ = _patches(numbers)
    return torch.stack([(rows * inside).flatten(), (columns * inside).flatten()]).double()


def wavelet_values(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """The numbers there, for a spectrum (count): (count * taps²). What falls off the matrix is 0."""
    _, _, inside, products = _patches(numbers)
    return (inputs[0][:, None, None] * products * inside).flatten()


def _patches(numbers: Mapping[str, float | str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each number's patch (count, taps, taps): rows, columns, whether they are in the matrix, and the filters'
    product.
    """
    import torch

    rows, columns = places_of(numbers)
    taps = low(str(numbers["family"]))
    filters = torch.tensor([taps, [(-1) ** k * tap for k, tap in enumerate(reversed(taps))]], dtype=torch.float64)
    tall, wide = int(numbers["tall"]), int(numbers["wide"])
    (first, lower), (begin, right) = _along(rows, tall, len(taps)), _along(columns, wide, len(taps))
    steps = torch.arange(len(taps))
    down, along = first[:, None] + steps, begin[:, None] + steps
    inside = ((down >= 0) & (down < tall))[:, :, None] & ((along >= 0) & (along < wide))[:, None, :]
    products = filters[right.long()][:, :, None] * filters[lower.long()][:, None, :]
    return down[:, :, None].expand(inside.shape), along[:, None, :].expand(inside.shape), inside, products


def _along(places: torch.Tensor, size: int, taps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Along one axis: where each patch begins in the matrix, and whether its number is in the second half."""
    padded = size + taps - 2
    padded += padded % 2
    half = padded // 2
    places = places + (padded - size) // 2
    spare = padded - taps + 2 - size  # what the result has too much, of which the middle is taken
    return 2 * (places % half) - (taps - 2) - spare // 2, places >= half


RULES = {"wavelet places": wavelet_places, "wavelet values": wavelet_values}
