"""The kinds of change that a sum can do to its base, and who computes each: one row a kind.

To add one: a file in `lazy/` with its class (`change.py` says what that answers), one here with what the row names,
and the row. Records of what undoes a merge name a kind as the row does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy.change import Change, Delta
from ..lazy.circulant import Circulant
from ..lazy.dense import Dense
from ..lazy.gain import Gain
from ..lazy.hadamard import Hadamard
from ..lazy.kron import Kron
from ..lazy.low_rank import LowRank
from ..lazy.scatter import Scatter
from ..lazy.turned import Turned
from ..lazy.waves import Waves
from . import circulant, dense, exact_waves, gain, hadamard, kron, low_rank, scatter, turned, waves

if TYPE_CHECKING:
    import torch

Columns = Callable[[int, int], "torch.Tensor"]  # columns [begin, end) of some rows of a delta, in float64


@dataclass(frozen=True)
class Added:
    """A kind of delta.

    `add(values, delta, area, work)` adds it to `values`, whole tiles whose corner is `area`; elsewhere it adds zero
    or nothing that matters. `exactly(delta, row, tall, work, fine=)` gives rows of it, bit for bit the same on every
    machine and for whatever rows and columns are asked: None where a kind cannot; then an undo record holds more.
    """

    kind: type[Delta]
    add: Callable[..., None]
    exactly: Callable[..., Columns] | None = None


@dataclass(frozen=True)
class Applied:
    """A kind of factor: `scale(values, gain, area, work, undo=)` multiplies the corner of `values` by it, or divides
    it.
    """

    kind: type[Change]
    scale: Callable[..., None]


DELTAS = {
    "low rank": Added(LowRank, low_rank.add, low_rank.exactly),
    "dense": Added(Dense, dense.add, dense.exactly),
    "hadamard": Added(Hadamard, hadamard.add, hadamard.exactly),
    "kron": Added(Kron, kron.add, kron.exactly),
    "scatter": Added(Scatter, scatter.add, scatter.exactly),
    "circulant": Added(Circulant, circulant.add, circulant.exactly),
    "waves": Added(Waves, waves.add, exact_waves.exactly),
    "turned": Added(Turned, turned.add, turned.exactly),
}

GAINS = {
    "gain": Applied(Gain, gain.scale),
}

NAMES: dict[type, str] = {
    **{row.kind: name for name, row in DELTAS.items()},
    **{row.kind: name for name, row in GAINS.items()},
}


def added(delta: Delta) -> Added:
    """Who computes it."""
    return DELTAS[NAMES[type(delta)]]


def applied(change: Change) -> Applied:
    """Who computes it."""
    return GAINS[NAMES[type(change)]]


def undoable(deltas: tuple[Delta, ...]) -> bool:
    """Whether all of them can be subtracted, the same on every machine, and without the base."""
    return all(added(delta).exactly and set(delta.factors) <= set(delta.given) for delta in deltas)
