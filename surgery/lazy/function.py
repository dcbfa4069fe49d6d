"""A user's own function of rows: known by its name and by a digest of all that it computes with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Function:
    """A function from a block of rows to as many rows. Two are the same that have one name and one digest."""

    name: str
    digest: str
    call: Callable[..., Any] = field(repr=False, compare=False)
