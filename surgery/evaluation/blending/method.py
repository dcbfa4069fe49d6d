"""What a way of blending models is: its law on blocks, what it needs to know, and what may be said to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ..row_blocks import Block, Scan

if TYPE_CHECKING:
    import torch

Rows = Callable[[Block], "torch.Tensor"]
Measure = Callable[[Scan], list[float]]


class Base(StrEnum):
    """What a method has of a base."""

    NEEDED = "needed"
    ALLOWED = "allowed"
    NONE = "none"


def never(numbers: Mapping[str, Any]) -> bool:
    """Single elements do."""
    return False


def always(numbers: Mapping[str, Any]) -> bool:
    """Whole rows are needed."""
    return True


def facts_of(each: int = 1) -> Callable[[Mapping[str, Any], int], int]:
    """How many facts there are, `each` a model."""
    return lambda numbers, columns: each * int(numbers["many"])


@dataclass(frozen=True)
class Method:
    """A row of the table. `rows` makes a block of the result of blocks of the inputs, the base first where there is
    one; numbers are `many`, how many models there are besides it, `based`, whether there is one, and the parameters:
    those of `each` model as `name@0`, and those that are `shared`. None is one that must be said.

    `measure` gives `facts(numbers, columns)` numbers of the whole of the inputs; where that is none, it is not asked.
    """

    what: str
    rows: Rows
    base: Base = Base.NEEDED
    least: int = 1
    most: int | None = None
    each: Mapping[str, float | None] = field(default_factory=dict)
    shared: Mapping[str, float | None] = field(default_factory=dict)
    by_rows: Callable[[Mapping[str, Any]], bool] = never
    measure: Measure | None = None
    facts: Callable[[Mapping[str, Any], int], int] = lambda numbers, columns: 0
    drawn: bool = False
