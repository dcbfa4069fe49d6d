"""The base times small matrices on a diagonal: what OFT and its like do to the inputs of a weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod

from ..errors import LayoutError
from .tensor import Shape, Tensor, narrow, permute, reshape


@dataclass(frozen=True, slots=True)
class Turned:
    """The delta `scale * base @ blockdiag(blocks)`, for blocks (runs, n, k, k) and a base (*rows, columns).

    The rows, as one axis, are cut into that many equal runs, each with blocks of its own; of each run's, n lie on
    the diagonal, for columns of n * k, or one that is repeated. `base` is what it is added to, or moves as that does:
    it reaches an output by itself.
    """

    base: Tensor
    blocks: Tensor
    scale: float

    @property
    def factors(self) -> tuple[Tensor, ...]:
        """The tensors that it is made of."""
        return self.base, self.blocks

    @property
    def given(self) -> tuple[Tensor, ...]:
        """The blocks."""
        return (self.blocks,)

    @property
    def edge(self) -> int:
        """How wide a block is."""
        return self.blocks.shape[-1]

    def check(self, shape: Shape) -> None:
        """Raise LayoutError unless it fits a base of `shape`."""
        runs, count, tall, wide = self.blocks.shape
        whole = shape[-1] == count * wide or (count == 1 and shape[-1] % wide == 0)
        if self.base.shape != shape or tall != wide or not whole or prod(shape[:-1]) % runs:
            raise LayoutError(f"blocks of {self.blocks.shape} on {self.base.shape} do not fit {shape}")

    def over(self, inner: Callable[[Tensor], Tensor]) -> Turned:
        """The same of what `inner` makes of base and blocks."""
        return replace(self, base=inner(self.base), blocks=inner(self.blocks))

    def times(self, weight: float) -> Turned:
        """`weight` times as much."""
        return replace(self, scale=self.scale * weight)

    def reshape_rows(self, rows: Shape) -> Turned:
        """The base's; as one axis they are the same."""
        return replace(self, base=reshape(self.base, (*rows, self.base.shape[-1])))

    def permute_rows(self, axes: Shape) -> Turned | None:
        """The base's, where all of them have the same blocks."""
        if self.blocks.shape[0] > 1:
            return None
        return replace(self, base=permute(self.base, (*axes, len(axes))))

    def narrow_rows(self, axis: int, start: int, length: int) -> Turned | None:
        """The base's, and of blocks those of whole runs."""
        runs, height = self.blocks.shape[0], self.base.shape[axis]
        base = narrow(self.base, axis, start, length)
        if runs == 1:
            return replace(self, base=base)
        tall = height // runs if height % runs == 0 and prod(self.base.shape[:axis]) == 1 else 0
        if not tall or not length or start % tall or length % tall:
            return None
        return replace(self, base=base, blocks=narrow(self.blocks, 0, start // tall, length // tall))

    def narrow_columns(self, start: int, length: int) -> Turned | None:
        """The base's, and the blocks of these, where none is cut."""
        if not length or start % self.edge or length % self.edge:
            return None
        base, one = narrow(self.base, -1, start, length), self.blocks.shape[1] == 1
        blocks = self.blocks if one else narrow(self.blocks, 1, start // self.edge, length // self.edge)
        return replace(self, base=base, blocks=blocks)

    def transposed(self) -> None:
        """Columns are turned, never rows."""
        return
