"""What a sum does to its base: the interface of each kind of delta that is added to it, and of what multiplies it.

Kinds are open, as leaves and movement are not. A kind is a frozen dataclass in a file of its own in this room
(`low_rank.py`, `dense.py`, `gain.py`); a file of the same name in `evaluation/` computes it; a row of the table in
`evaluation/kinds.py` names the two. Nothing else knows which kinds there are.

A base is a matrix, as deep as it likes: its last axis is its columns, all before that are its rows. Each movement of
rows or columns is asked of the kind: what it answers, for a base that moved alike, is the same change. None says
that it cannot; then the movement stays above the sum, which is computed as a whole first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from .tensor import Shape, Tensor


class Change(Protocol):
    """What is added to a base, or multiplies it."""

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Those of its factors by which opened tensors reach an output: all but what is made from the base itself."""

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""

    def over(self, inner: Callable[[Tensor], Tensor]) -> Self:
        """The same of what `inner` makes of each factor."""

    def reshape_rows(self, rows: Shape) -> Self | None:
        """For a base of (*rows, columns)."""

    def permute_rows(self, axes: Shape) -> Self | None:
        """For a base whose axes of rows are in the order `axes`."""

    def narrow_rows(self, axis: int, start: int, length: int) -> Self | None:
        """For a base of which entries [start, start + length) of an axis of rows are left."""

    def narrow_columns(self, start: int, length: int) -> Self | None:
        """For a base of which the columns [start, start + length) are left."""

    def transposed(self) -> Self | None:
        """For a base of two axes that lie in the other order; each element is the same but for the order in which
        float32 numbers are added.
        """


class Delta(Change, Protocol):
    """What is added to a base, of its shape."""

    def times(self, weight: float) -> Self:
        """`weight` times as much."""
