"""The product, element by element, of products of thin matrices: what LoHa adds; and of these with the base: HiRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LayoutError
from .low_rank import LowRank
from .tensor import Shape, Tensor, narrow, permute, reshape


@dataclass(frozen=True, slots=True)
class Hadamard:
    """The delta `scale * of[0] * of[1] * …`, times `base`, a tensor of its shape, where there is one.

    `base` is what it is added to, or moves as that does: it reaches an output by itself.
    """

    of: tuple[LowRank, ...]
    base: Tensor | None
    scale: float

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (*(factor for one in self.of for factor in one.factors), *([self.base] if self.base else []))

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Those of its deltas."""
        return tuple(factor for one in self.of for factor in one.given)

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""
        for one in self.of:
            one.check(shape)
        if self.base and self.base.shape != shape:
            raise LayoutError(f"a product with {self.base.shape} does not fit {shape}")

    def over(self, inner: Callable[[Tensor], Tensor]) -> Hadamard:
        """The same of what `inner` makes of each factor."""
        return replace(self, of=tuple(one.over(inner) for one in self.of), base=self.base and inner(self.base))

    def times(self, weight: float) -> Hadamard:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def reshape_rows(self, rows: Shape) -> Hadamard | None:
        """Each of them is."""
        return self._moved(lambda one: one.reshape_rows(rows), lambda base: reshape(base, (*rows, base.shape[-1])))

    def permute_rows(self, axes: Shape) -> Hadamard | None:
        """Each of them is."""
        return self._moved(lambda one: one.permute_rows(axes), lambda base: permute(base, (*axes, len(axes))))

    def narrow_rows(self, axis: int, start: int, length: int) -> Hadamard | None:
        """Each of them is."""
        return self._moved(
            lambda one: one.narrow_rows(axis, start, length), lambda base: narrow(base, axis, start, length)
        )

    def narrow_columns(self, start: int, length: int) -> Hadamard | None:
        """Each of them is."""
        return self._moved(lambda one: one.narrow_columns(start, length), lambda base: narrow(base, -1, start, length))

    def transposed(self) -> Hadamard | None:
        """Each of them is."""
        return self._moved(lambda one: one.transposed(), lambda base: permute(base, (1, 0)))

    def _moved(self, move: Callable[[LowRank], LowRank | None], along: Callable[[Tensor], Tensor]) -> Hadamard | None:
        """It with each of its deltas and its base moved; None where one of them cannot be."""
        of = [moved for one in self.of if (moved := move(one)) is not None]
        if len(of) < len(self.of):
            return None
        return replace(self, of=tuple(of), base=self.base and along(self.base))
