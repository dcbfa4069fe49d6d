"""The same elements of several tensors, block by block: of a grid that the tensors' shape alone chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..lazy.dtypes import F64
from ..lazy.tensor import Tensor
from .arithmetic import torch_dtype
from .losses import broken, usual
from .tiles import columns_of

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

BLOCK = 1 << 16  # elements of each tensor that a rule is given at once: some of them stay in the cache
TALL = 64  # rows of the grid, or fewer of longer ones
LONGEST = 1 << 22  # elements that a row may have where it is needed as a whole


@dataclass(frozen=True)
class Block:
    """The same elements of several tensors, in one dtype of floats: flat, or as [rows, columns] where whole rows are
    asked for. `at` is the first one's place.
    """

    values: list[torch.Tensor]
    at: int
    numbers: dict[str, Any]
    facts: list[float] = field(default_factory=list)

    @property
    def base(self) -> torch.Tensor:
        """The first of them, where a method has a base."""
        return self.values[0]

    def deltas(self, many: int) -> list[torch.Tensor]:
        """What `many` tensors that follow the base are, less the base."""
        return [one - self.base for one in self.values[1 : many + 1]]

    def each(self, name: str, many: int) -> list[float]:
        """A parameter of each model."""
        return each(self.numbers, name, many)


def each(numbers: dict[str, Any], name: str, many: int) -> list[float]:
    """A parameter of each of so many models."""
    return [numbers[f"{name}@{i}"] for i in range(many)]


def tall_of(columns: int) -> int:
    """Rows of the grid's blocks."""
    return max(1, min(TALL, BLOCK // max(columns, 1)))


def blocks_of(
    inputs: tuple[Tensor, ...],
    numbers: dict[str, Any],
    start: int,
    stop: int,
    work: Workspace,
    *,
    by_rows: bool,
    facts: list[float] | None = None,
) -> Iterator[Block]:
    """Elements [start, stop) of the inputs, and around them what makes blocks of the grid whole where `by_rows`."""
    kind = kind_of(inputs, numbers)
    columns, size = columns_of(inputs[0]), inputs[0].size
    unit = tall_of(columns) * columns if by_rows else BLOCK
    for at in range(start // unit * unit if by_rows else start, stop, unit):
        end = min(at + unit, size if by_rows else stop)
        values = [_values(one, i, at, end, kind, work) for i, one in enumerate(inputs)]
        yield Block([one.view(-1, columns) for one in values] if by_rows else values, at, numbers, facts or [])


def kind_of(inputs: tuple[Tensor, ...], numbers: dict[str, Any]) -> torch.dtype:
    """The dtype in which is computed: what the numbers say, and float64 where one of the inputs is of it."""
    import torch

    return torch.float64 if any(one.dtype == F64 for one in inputs) else getattr(torch, numbers["compute"])


def _values(tensor: Tensor, which: int, start: int, stop: int, kind: torch.dtype, work: Workspace) -> torch.Tensor:
    """Elements of an input, of `kind`, in memory that the next block of it takes over."""
    import torch

    raw = work.buffer(f"rows {work.depth} {which}", (stop - start) * tensor.dtype.bits // 8)
    work.fill_under(tensor, start, stop, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).to(kind)


@dataclass(frozen=True)
class Scan:
    """Inputs that can be gone through as often as is needed."""

    inputs: tuple[Tensor, ...]
    numbers: dict[str, Any]
    work: Workspace
    by_rows: bool
    broken: dict[tuple[int, int], int] = field(default_factory=dict)  # NaN and infinity, by input and place of a block

    @property
    def size(self) -> int:
        """Elements of each input."""
        return self.inputs[0].size

    @property
    def kind(self) -> torch.dtype:
        """The dtype of the blocks."""
        return kind_of(self.inputs, self.numbers)

    def each(self, name: str, many: int) -> list[float]:
        """A parameter of each model."""
        return each(self.numbers, name, many)

    def blocks(self, which: Sequence[int] | None = None) -> Iterator[Block]:
        """All elements of the inputs, or of those that are named, in order."""
        inputs = self.inputs if which is None else tuple(self.inputs[i] for i in which)
        numbers = {**self.numbers, "compute": str(self.kind).removeprefix("torch.")}
        for block in blocks_of(inputs, numbers, 0, self.size, self.work, by_rows=self.by_rows):
            for i, values in zip(which or range(len(inputs)), block.values, strict=True):
                if not usual(values) and (bad := broken(values)):
                    self.broken[i, block.at] = bad
            yield block
