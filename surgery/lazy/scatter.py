"""Numbers at places of a matrix, and nothing elsewhere: what SHiRA and Super-Tuning add."""

from __future__ import annotations

from dataclasses import dataclass

from .at_places import AtPlaces


@dataclass(frozen=True, slots=True)
class Scatter(AtPlaces):
    """The delta that is the numbers at their places; those at the same place are added."""
