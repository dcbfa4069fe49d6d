"""What one worker needs to evaluate: open files, buffers, what is remembered between windows, and the way to the
evaluator.

The evaluators of single nodes ask `fill` for the tensors that theirs are made of, and know no dispatcher.
"""

from __future__ import annotations

from collections.abc import Callable
from mmap import mmap
from typing import TYPE_CHECKING, Any

from ..lazy.runs import Piece, lower
from ..lazy.tensor import Tensor
from .cache import window_here
from .losses import Loss
from .read import Reader

if TYPE_CHECKING:
    import torch

LEAST_BUDGET = 20_000_000  # bytes that one worker with sums to compute cannot do without
DEFAULT_MEMORY = 96_000_000  # bytes of buffers, all workers together
REMEMBERED = 64  # tensors whose pieces are remembered

Fill = Callable[[Tensor, int, int, memoryview, "Workspace"], None]


class Workspace:
    """Open files and buffers, together at most `budget` bytes; `into` is the dispatcher. `evaluate.workspace_of`
    makes them.
    """

    def __init__(self, into: Fill, budget: int, aliases: dict[str, str] | None = None) -> None:
        self._into = into
        self.reader = Reader(aliases, budget // 8)
        self.widest = min(8 << 20, budget // 8)  # bytes of a value that are made at once, at most
        self.window = min(window_here(), self.widest)  # the same where the rows of a tile do not need more
        self.turned = min(12 << 20, budget // 4)  # the same of tensors that are moved together, out of their order
        self.depth = 0  # of sums within sums, each with a buffer of its own for its base
        self.loss = Loss()  # what rounding did to the sums that were made since the last `take_loss`
        self._most = budget // (4 if budget >= LEAST_BUDGET else 2)  # bytes of tensors remembered for one use
        self._buffers: dict[str, bytearray] = {}
        self._pages = memoryview(b"")
        self._tensors: dict[str, dict[int, tuple[object, list[torch.Tensor]]]] = {}
        self._lowered: dict[int, tuple[Tensor, list[Piece]]] = {}
        self._last: dict[str, tuple[object, Any]] = {}

    def fill(self, tensor: Tensor, start: int, stop: int, out: memoryview) -> None:
        """Fill `out` with elements [start, stop) of `tensor`."""
        self._into(tensor, start, stop, out, self)

    def fill_under(self, tensor: Tensor, start: int, stop: int, out: memoryview) -> None:
        """The same for the base of a sum, which may be a sum itself."""
        self.depth += 1
        self.fill(tensor, start, stop, out)
        self.depth -= 1

    def buffer(self, use: str, size: int) -> memoryview:
        """`size` bytes for `use`, the same memory at each call: fresh pages cost more than the arithmetic."""
        if len(self._buffers.get(use, b"")) < size:
            self._buffers[use] = bytearray(size)
        return memoryview(self._buffers[use])[:size]

    def aligned(self, size: int) -> memoryview:
        """`size` bytes that begin with a page, the same memory at each call."""
        if len(self._pages) < size:
            self._pages = memoryview(mmap(-1, size))
        return self._pages[:size]

    def pieces(self, tensor: Tensor) -> list[Piece]:
        """`lower(tensor)`, remembered for the next windows of the same tensor."""
        if id(tensor) not in self._lowered:
            if len(self._lowered) >= REMEMBERED:
                self._lowered.clear()
            self._lowered[id(tensor)] = (tensor, lower(tensor))
        return self._lowered[id(tensor)][1]

    def tensors(
        self, use: str, owner: object, size: int, make: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor] | None:
        """What `make` gives for `owner`, remembered while there is room; None where `size` bytes of them never have
        room.
        """
        if size > self._most:
            return None
        held = self._tensors.setdefault(use, {})
        if id(owner) not in held:
            if sum(t.nbytes for _, ts in held.values() for t in ts) + size > self._most:
                held.clear()
            held[id(owner)] = owner, make()
        return held[id(owner)][1]

    def last(self, use: str, owner: object, make: Callable[[], Any]) -> Any:
        """What `make` gives for `owner`, remembered until another owner asks."""
        if self._last.get(use, (None, None))[0] is not owner:
            self._last[use] = owner, make()
        return self._last[use][1]

    def take_loss(self) -> Loss:
        """What rounding did to the sums since the last call."""
        taken, self.loss = self.loss, Loss()
        return taken

    def close(self) -> None:
        """Close files, free buffers."""
        self.reader.close()
        self._buffers.clear()
        self._pages = memoryview(b"")
        self._tensors.clear()
        self._last.clear()
