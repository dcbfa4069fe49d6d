"""The product of two thin matrices: what LoRA adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LayoutError
from .tensor import Shape, Tensor, narrow, permute, reshape


@dataclass(frozen=True, slots=True)
class LowRank:
    """The delta `scale * left @ right`: left (*rows, r), right (r, columns), for a base (*rows, columns)."""

    left: Tensor
    right: Tensor
    scale: float

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return self.left, self.right

    @property
    def given(self) -> tuple[Tensor, ...]:
        """All of them."""
        return self.factors

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""
        if (*self.left.shape[:-1], self.right.shape[1]) != shape or self.left.shape[-1] != self.right.shape[0]:
            raise LayoutError(f"a delta of {self.left.shape} x {self.right.shape} does not fit {shape}")

    def over(self, inner: Callable[[Tensor], Tensor]) -> LowRank:
        """The same of what `inner` makes of each factor."""
        return LowRank(inner(self.left), inner(self.right), self.scale)

    def times(self, weight: float) -> LowRank:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def reshape_rows(self, rows: Shape) -> LowRank:
        """Rows are the left factor's."""
        return replace(self, left=reshape(self.left, (*rows, self.left.shape[-1])))

    def permute_rows(self, axes: Shape) -> LowRank:
        """Rows are the left factor's."""
        return replace(self, left=permute(self.left, (*axes, len(axes))))

    def narrow_rows(self, axis: int, start: int, length: int) -> LowRank:
        """Rows are the left factor's."""
        return replace(self, left=narrow(self.left, axis, start, length))

    def narrow_columns(self, start: int, length: int) -> LowRank:
        """Columns are the right factor's."""
        return replace(self, right=narrow(self.right, 1, start, length))

    def transposed(self) -> LowRank | None:
        """The factors change places."""
        if len(self.left.shape) != 2:
            return None
        return replace(self, left=permute(self.right, (1, 0)), right=permute(self.left, (1, 0)))
