"""The Kronecker product of two small matrices: what LoKr adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

from ..errors import LayoutError
from .cut import Cut
from .tensor import Tensor, permute


@dataclass(frozen=True, slots=True)
class Kron(Cut):
    """The delta `scale * kron(left, right)`: element (p, q) is `left[p // h, q // w] * right[p % h, q % w]` for a
    right factor of (h, w).
    """

    left: Tensor
    right: Tensor
    scale: float

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of the product."""
        return self.left.shape[0] * self.right.shape[0], self.left.shape[1] * self.right.shape[1]

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return self.left, self.right

    @property
    def given(self) -> tuple[Tensor, ...]:
        """Both of them."""
        return self.factors

    def over(self, inner: Callable[[Tensor], Tensor]) -> Kron:
        """The same of what `inner` makes of each factor."""
        return replace(self, left=inner(self.left), right=inner(self.right))

    def times(self, weight: float) -> Kron:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def transposed(self) -> Kron | None:
        """Both factors are."""
        if len(self.rows) != 1:
            return None
        turn = cast(dict[str, Any], self.turned())
        return replace(self, left=permute(self.left, (1, 0)), right=permute(self.right, (1, 0)), **turn)


def kron(left: Tensor, right: Tensor, scale: float) -> Kron:
    """All of the product. Raises LayoutError unless both are matrices."""
    if len(left.shape) != 2 or len(right.shape) != 2:
        raise LayoutError(f"{left.shape} and {right.shape} have no Kronecker product that is a matrix")
    (tall, wide), (high, broad) = left.shape, right.shape
    return Kron(left, right, scale, rows=(tall * high,), columns=wide * broad)
