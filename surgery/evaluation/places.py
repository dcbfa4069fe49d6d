"""Numbers at places, read from wherever they lie in the order of the rows that they belong to.

There may be more of them than fit into memory: then those of some rows are held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy.at_places import AtPlaces
from ..lazy.tensor import Tensor
from .arithmetic import torch_dtype

if TYPE_CHECKING:
    import torch

    from .tiles import Area
    from .workspace import Workspace

STEP = 1 << 16  # places that are read at once
ENTRY = 16  # bytes of a place and its number
HELD = 1 << 18  # entries that are held at least


@dataclass
class _Held:
    """The entries of rows [first, last)."""

    first: int
    last: int
    found: list[torch.Tensor]


def within(delta: AtPlaces, area: Area, work: Workspace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows and columns within `area`, and the number of each, in the order of places, then in their own."""
    import torch

    wide, row, column = delta.whole[1], area.row + delta.row, area.column + delta.column
    places, numbers = _held(delta, row, row + area.tall, work)
    low, high = torch.searchsorted(places, torch.tensor([row * wide, (row + area.tall) * wide])).tolist()
    rows, columns = places[low:high] // wide - row, places[low:high] % wide - column
    inside = (columns >= 0) & (columns < area.wide)
    return rows[inside], columns[inside], numbers[low:high][inside]


def every(delta: AtPlaces, work: Workspace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same of all of the matrix, as the base has it."""
    places, numbers = _held(delta, 0, delta.whole[0], work)
    return places // delta.whole[1], places % delta.whole[1], numbers


def astray(delta: AtPlaces, work: Workspace) -> tuple[int, int]:
    """How many of the places are not in the matrix, and, where all are, how many are the same as another one."""
    tall = delta.whole[0]
    outside = sum(int((~_inside(delta, *part[:2])).sum()) for part in _read(delta, work))
    if outside:
        return outside, 0
    span = max(1, tall * 4 * HELD // max(1, delta.values.size))
    twice = 0
    for first in range(0, tall, span):
        places, _ = _sorted(delta, first, min(tall, first + span), work)
        twice += int((places[1:] == places[:-1]).sum())
    return 0, twice


def _held(delta: AtPlaces, first: int, last: int, work: Workspace) -> list[torch.Tensor]:
    """Places and numbers, sorted, of at least rows [first, last): of all, where there is room for them."""
    count, tall = delta.values.size, delta.whole[0]
    if found := work.tensors("places", delta, count * ENTRY, lambda: _sorted(delta, 0, tall, work)):
        return found
    held: _Held = work.last("places", delta, lambda: _Held(0, 0, []))
    if not held.first <= first <= last <= held.last:
        held.first, held.last = first, min(tall, max(last, first + tall * HELD // count))
        held.found = _sorted(delta, held.first, held.last, work)
    return held.found


def _sorted(delta: AtPlaces, first: int, last: int, work: Workspace) -> list[torch.Tensor]:
    """Places, counted row by row, and numbers in float64 of rows [first, last)."""
    import torch

    wide = delta.whole[1]
    places, numbers = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.float64)]
    for rows, columns, values in _read(delta, work):
        chosen = (rows >= first) & (rows < last)
        places.append((rows * wide + columns)[chosen])
        numbers.append(values[chosen])
    place, order = torch.cat(places).sort(stable=True)
    return [place, torch.cat(numbers)[order]]


def _read(delta: AtPlaces, work: Workspace) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rows, columns and numbers, some at a time, as they lie."""
    count = delta.values.size
    for start in range(0, count, STEP):
        stop = min(start + STEP, count)
        first = _integers(delta.places, start, stop, work)
        if delta.places.shape == (count,):
            rows, columns = first.div(delta.wide, rounding_mode="floor"), first % delta.wide
        else:
            rows, columns = first, _integers(delta.places, count + start, count + stop, work)
        values = _values(delta.values, start, stop, work).double()
        yield (columns, rows, values) if delta.over_turned else (rows, columns, values)


def _inside(delta: AtPlaces, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    tall, wide = delta.whole
    return (rows >= 0) & (rows < tall) & (columns >= 0) & (columns < wide)


def _integers(tensor: Tensor, start: int, stop: int, work: Workspace) -> torch.Tensor:
    """Elements as int64: what is no whole number is -1, which is outside of everything."""
    import torch

    values = _values(tensor, start, stop, work)
    if not values.is_floating_point():
        return values.long()
    whole = values == values.floor()
    return torch.where(whole, values, -1).long()


def _values(tensor: Tensor, start: int, stop: int, work: Workspace) -> torch.Tensor:
    """Elements [start, stop), in memory of their own."""
    import torch

    raw = work.buffer("places", (stop - start) * tensor.dtype.bits // 8)
    work.fill(tensor, start, stop, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).clone()
