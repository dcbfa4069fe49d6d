"""A tensor of the base's own shape, times a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LayoutError
from .tensor import Shape, Tensor, narrow, permute, reshape


@dataclass(frozen=True, slots=True)
class Dense:
    """The delta `scale * value`, of the base's shape."""

    value: Tensor
    scale: float

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensor that it is made of."""
        return (self.value,)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The same."""
        return self.factors

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""
        if self.value.shape != shape:
            raise LayoutError(f"a delta of {self.value.shape} does not fit {shape}")

    def over(self, inner: Callable[[Tensor], Tensor]) -> Dense:
        """The same of what `inner` makes of the value."""
        return replace(self, value=inner(self.value))

    def times(self, weight: float) -> Dense:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def reshape_rows(self, rows: Shape) -> Dense:
        """Rows are the value's."""
        return replace(self, value=reshape(self.value, (*rows, self.value.shape[-1])))

    def permute_rows(self, axes: Shape) -> Dense:
        """Rows are the value's."""
        return replace(self, value=permute(self.value, (*axes, len(axes))))

    def narrow_rows(self, axis: int, start: int, length: int) -> Dense:
        """Rows are the value's."""
        return replace(self, value=narrow(self.value, axis, start, length))

    def narrow_columns(self, start: int, length: int) -> Dense:
        """Columns are the value's."""
        return replace(self, value=narrow(self.value, -1, start, length))

    def transposed(self) -> Dense | None:
        """The value is."""
        return replace(self, value=permute(self.value, (1, 0))) if len(self.value.shape) == 2 else None
