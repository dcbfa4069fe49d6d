"""Rows that a rule makes of the same rows of several tensors.

The bytes depend neither on windows nor on workers: a rule of single elements is the same wherever they are cut, and one
of whole rows, or a user's function, is given blocks of a grid that the tensor's shape alone chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import SurgeryError
from ..lazy.dtypes import F16
from ..lazy.function import Function
from ..lazy.tensor import Rowwise
from .arithmetic import one_thread, torch_dtype
from .blending import METHODS
from .losses import usual
from .row_blocks import Block, blocks_of, tall_of
from .tiles import columns_of

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_rowwise(made: Rowwise, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop)."""
    import torch

    one_thread()
    result = torch.frombuffer(out, dtype=torch_dtype(made.dtype))
    if isinstance(made.rule, Function):
        columns = columns_of(made)
        for row, rows in _on_grid(made, start, stop):
            _put(_mapped(made, made.rule, row, rows, work), row * columns, start, stop, result)
        return
    numbers, facts = dict(made.numbers), work.last("facts", made, lambda: facts_of(made, work))
    method = METHODS[made.rule]
    for block in blocks_of(made.inputs, numbers, start, stop, work, by_rows=method.by_rows(numbers), facts=facts):
        values = method.rows(block)
        _put(values, block.at, start, stop, result)
        if not work.depth:
            _count(made, block, values, work)


def facts_of(made: Rowwise, work: Workspace) -> list[float]:
    """What was measured of the whole of its inputs."""
    import torch

    if made.facts is None:
        return []
    raw = bytearray(made.facts.nbytes)
    work.fill(made.facts, 0, made.facts.size, memoryview(raw))
    return torch.frombuffer(raw, dtype=torch.float64).tolist()


def _put(values: torch.Tensor, at: int, start: int, stop: int, result: torch.Tensor) -> None:
    """Those of the values, which begin with element `at`, that are of [start, stop), rounded into `result`."""
    values = values.reshape(-1)
    low, high = max(start, at), min(stop, at + values.numel())
    result[low - start : high - start].copy_(values[low - at : high - at])


def _count(made: Rowwise, block: Block, values: torch.Tensor, work: Workspace) -> None:
    """Count what is infinite or NaN, and was in an input, or was not. What infinities make NaN was not."""
    import torch

    if made.dtype != F16 and usual(values):
        return
    rounded = values.to(torch_dtype(made.dtype))
    bad = ~torch.isfinite(rounded)
    if bool(bad.any()):
        none = torch.zeros_like(bad)
        before = sum((~torch.isfinite(one) for one in block.values), none).to(torch.bool)
        unset = sum((one.isnan() for one in block.values), none).to(torch.bool)
        lost = bad & (~before | (rounded.isnan() & ~unset))
        work.loss.broken += int((bad & before).sum())
        work.loss.overflowed += int(lost.sum())


def _on_grid(made: Rowwise, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """The blocks of rows that hold elements [start, stop): (first row, rows)."""
    columns = columns_of(made)
    tall, rows = tall_of(max(columns, columns_of(made.inputs[0]))), made.size // max(columns, 1)
    for row in range(start // (tall * columns) * tall, -(-stop // columns), tall):
        yield row, min(tall, rows - row)


def _mapped(made: Rowwise, function: Function, row: int, rows: int, work: Workspace) -> torch.Tensor:
    """What a user's function makes of some rows. Raises SurgeryError where that is not what it made of the probe."""
    import torch

    (tensor,) = made.inputs
    columns = columns_of(tensor)
    raw = bytearray(rows * columns * tensor.dtype.bits // 8)
    work.fill_under(tensor, row * columns, (row + rows) * columns, memoryview(raw))
    with torch.no_grad():
        found = function.call(torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).view(rows, columns))
    wanted = (rows, columns_of(made)), torch_dtype(made.dtype)
    if not isinstance(found, torch.Tensor) or (tuple(found.shape), found.dtype) != wanted:
        raise SurgeryError(
            f"{function.name} made something else of a block of {rows} rows than of the one it was tried on",
            where=[f"it should be {wanted[0]} of {wanted[1]}"],
            help="what it returns may follow from shape and dtype alone, not from values",
        )
    return found
