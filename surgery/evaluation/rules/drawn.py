"""Places that a kind draws and does not save: what torch's CPU generator draws, without torch, the same everywhere.

That generator is the Mersenne Twister of 32 bits, as numpy's `RandomState` is, whose stream never changes. Torch's
`randperm(n, generator)` swaps each place j of [0, n) with place j + draw % (n - j), in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def drawn(count: int, size: int, seed: int) -> list[int]:
    """The first `count` entries of `torch.randperm(size)` after `manual_seed(seed)`; only what is swapped is held."""
    import numpy

    draws = numpy.random.RandomState(seed % 2**32).randint(0, 2**32, min(count, size - 1), dtype=numpy.uint32)
    moved: dict[int, int] = {}
    places = []
    for place, draw in enumerate(draws.tolist()):
        other = place + draw % (size - place)
        places.append(moved.get(other, other))
        moved[other] = moved.pop(place, place)
    return places if count < size else [*places, moved.get(size - 1, size - 1)]


def places_of(numbers: Mapping[str, float | str]) -> torch.Tensor:
    """`count` places of a matrix of (tall, wide), as rows and columns, drawn after `seed`."""
    import torch

    count, seed, tall, wide = (int(numbers[name]) for name in ("count", "seed", "tall", "wide"))
    flat = torch.tensor(drawn(count, tall * wide, seed), dtype=torch.int64)
    return torch.stack([flat // wide, flat % wide])


def drawn_places(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """The same, as a rule."""
    return places_of(numbers).double()


RULES = {"drawn places": drawn_places}
