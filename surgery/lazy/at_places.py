"""Numbers at places of a matrix, as deltas are made of: what kinds that are given so have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self, cast

from ..errors import LayoutError
from .cut import Cut
from .tensor import Tensor


@dataclass(frozen=True, slots=True)
class AtPlaces(Cut):
    """`scale * values[k]` at place k of a matrix of (tall, wide), which lies in the other order in the base where it
    is `over_turned`.

    `places` (2, n) are rows and columns, (n) are counted row by row: integers, or floats that are whole numbers.
    """

    places: Tensor
    values: Tensor
    scale: float
    tall: int
    wide: int
    over_turned: bool = False

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the matrix as the base has them."""
        return (self.wide, self.tall) if self.over_turned else (self.tall, self.wide)

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return self.places, self.values

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Both of them."""
        return self.factors

    def over(self, inner: Callable[[Tensor], Tensor]) -> Self:
        """The same of what `inner` makes of each factor."""
        return replace(self, places=inner(self.places), values=inner(self.values))

    def times(self, weight: float) -> Self:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def transposed(self) -> Self | None:
        """Rows are columns."""
        if len(self.rows) != 1:
            return None
        return replace(self, over_turned=not self.over_turned, **cast(dict[str, Any], self.turned()))

    @classmethod
    def of(cls, places: Tensor, values: Tensor, scale: float, tall: int, wide: int) -> Self:
        """For all of a matrix of (tall, wide). Raises LayoutError unless there are as many places as values."""
        if len(values.shape) != 1 or places.shape not in ((values.size,), (2, values.size)):
            raise LayoutError(f"places of {places.shape} do not fit values of {values.shape}")
        return cls(places, values, scale, tall, wide, rows=(tall,), columns=wide)
