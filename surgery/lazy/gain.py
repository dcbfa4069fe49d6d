"""A factor for each row of a sum, or for each column: what DoRA trains, and (IA)³."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LayoutError
from .tensor import Shape, Tensor, narrow, permute, reshape


@dataclass(frozen=True, slots=True)
class Gain:
    """The factor `magnitude / norms` for each row (of the flattened leading axes), or for each column; without norms,
    the magnitude alone.
    """

    magnitude: Tensor
    norms: Tensor | None
    columns: bool = False

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return (self.magnitude, self.norms) if self.norms else (self.magnitude,)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The magnitudes: norms are those of the base, which arrives by itself."""
        return (self.magnitude,)

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""
        wanted = shape[-1:] if self.columns else shape[:-1]
        if any(factor.shape != wanted for factor in self.factors):
            raise LayoutError(f"magnitudes of {self.magnitude.shape} do not fit {shape}")

    def over(self, inner: Callable[[Tensor], Tensor]) -> Gain:
        """The same of what `inner` makes of each factor."""
        return Gain(inner(self.magnitude), inner(self.norms) if self.norms else None, self.columns)

    def reshape_rows(self, rows: Shape) -> Gain:
        """Factors of rows move with them, those of columns stay."""
        return self if self.columns else self.over(lambda factor: reshape(factor, rows))

    def permute_rows(self, axes: Shape) -> Gain:
        """Factors of rows move with them, those of columns stay."""
        return self if self.columns else self.over(lambda factor: permute(factor, axes))

    def narrow_rows(self, axis: int, start: int, length: int) -> Gain:
        """Factors of rows move with them, those of columns stay."""
        return self if self.columns else self.over(lambda factor: narrow(factor, axis, start, length))

    def narrow_columns(self, start: int, length: int) -> Gain:
        """Factors of columns move with them, those of rows stay."""
        return self.over(lambda factor: narrow(factor, 0, start, length)) if self.columns else self

    def transposed(self) -> Gain:
        """Rows are columns."""
        return replace(self, columns=not self.columns)
