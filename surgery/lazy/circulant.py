"""Blocks of which each row is the row above it, moved by one: what C³A adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from ..errors import LayoutError
from .cut import Cut
from .tensor import Tensor


@dataclass(frozen=True, slots=True)
class Circulant(Cut):
    """The delta `scale * kernel[m, n, (q - p) % b]` in row p and column q of block (m, n), for a kernel of
    (rows / b, columns / b, b).
    """

    kernel: Tensor
    scale: float

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns of all blocks."""
        down, along, size = self.kernel.shape
        return down * size, along * size

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensor that it is made of."""
        return (self.kernel,)

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The same."""
        return self.factors

    def over(self, inner: Callable[[Tensor], Tensor]) -> Circulant:
        """The same of what `inner` makes of the kernel."""
        return replace(self, kernel=inner(self.kernel))

    def times(self, weight: float) -> Circulant:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def transposed(self) -> Circulant | None:
        """Rows would move the other way."""
        return None


def circulant(kernel: Tensor, scale: float) -> Circulant:
    """All of the blocks. Raises LayoutError unless the kernel has three axes."""
    if len(kernel.shape) != 3:
        raise LayoutError(f"{kernel.shape} are no blocks")
    down, along, size = kernel.shape
    return Circulant(kernel, scale, rows=(down * size,), columns=along * size)
