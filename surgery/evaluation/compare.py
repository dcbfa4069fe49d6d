"""Comparing: lazy tensors side by side, in windows of bounded size.

Bytes first, without torch; only what differs is looked at as numbers. An element differs where its bits do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..lazy.dtypes import BF16, F16, F32, F64, Dtype
from ..lazy.tensor import Tensor, has_arithmetic
from .arithmetic import exact, torch_dtype
from .evaluate import blocks, into, settle, workspace_of
from .workspace import DEFAULT_MEMORY, Workspace

if TYPE_CHECKING:
    import torch

WINDOW = 4 << 20  # bytes of the first tensor that are compared at once
CHUNK = 1 << 18  # elements that are looked at as float64 at once
# Bits of the fraction, and the least exponent of a normal number: an ulp of x is 2 ** (exponent of x - fraction).
PRECISION = {F16: (10, -14), BF16: (7, -126), F32: (23, -126), F64: (52, -1022)}


@contextmanager
def comparing(tensors: Sequence[Tensor], work: Workspace) -> Iterator[list[Tensor]]:
    """The tensors, ready to be read window by window: what is not row-local lies in files of a temporary folder."""
    if not any(map(has_arithmetic, tensors)):
        yield list(tensors)
        return
    with tempfile.TemporaryDirectory() as folder, exact():
        yield [settle(tensor, folder, work) for tensor in tensors]


@contextmanager
def workspace() -> Iterator[Workspace]:
    """A workspace for comparisons, closed at the end."""
    work = workspace_of(DEFAULT_MEMORY)
    work.window = WINDOW
    try:
        yield work
    finally:
        work.close()


def identical(first: Tensor, second: Tensor, work: Workspace) -> bool:
    """Whether dtype, shape and all bytes are equal. Reads up to the first window that differs; torch only where
    there are sums.
    """
    if first == second:
        return True
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    with comparing((first, second), work) as pair:
        return all(bytes(a) == bytes(b) for a, b in windows(pair, work))  # memcmp, which views are not compared by


def same(first: Tensor, second: Tensor) -> bool:
    """`identical`, with a workspace of its own."""
    with workspace() as work:
        return identical(first, second, work)


def windows(tensors: Sequence[Tensor], work: Workspace) -> Iterator[list[memoryview]]:
    """The bytes of the same elements of each tensor, window by window of the first. Valid until the next."""
    first, *others = tensors
    for at, data in blocks(first, 0, first.size, work):
        start, stop = (n * 8 // first.dtype.bits for n in (at, at + len(data)))
        views = [data]
        for i, other in enumerate(others):
            views.append(work.buffer(f"side {i}", (stop - start) * other.dtype.bits // 8))
            into(other, start, stop, views[-1], work)
        yield views


def chunks(tensors: Sequence[Tensor], work: Workspace) -> Iterator[list[torch.Tensor]]:
    """The same elements of each tensor as flat torch tensors: whole rows, as far as a window holds them. Valid until
    the next.
    """
    import torch

    columns = tensors[0].shape[-1] if tensors[0].shape else 1
    step = max(1, CHUNK // columns) * columns
    for views in windows(tensors, work):
        values = [torch.frombuffer(v, dtype=torch_dtype(t.dtype)) for v, t in zip(views, tensors, strict=True)]
        for at in range(0, len(values[0]), step):
            yield [v[at : at + step] for v in values]


def distance(first: torch.Tensor, second: torch.Tensor) -> int:
    """The largest number of steps from a value of one to the value of the other, through all values of their dtype."""
    import torch

    if not len(first):
        return 0
    a, b = _places(first), _places(second)
    across = a.sign() * b.sign() < 0  # the sum of two float64 places may not fit in 64 bits
    near = int((a - b).abs().where(~across, 0).max())
    return max(near, int((a.abs().to(torch.float64) + b.abs().to(torch.float64)).where(across, 0).max()))


def ulp(size: torch.Tensor, dtypes: Sequence[Dtype]) -> torch.Tensor:
    """For each magnitude in float64, the widest ulp there of the dtypes."""
    import torch

    exponent = torch.frexp(size)[1] - 1
    one = torch.ones_like(size)
    widest = torch.zeros_like(size)
    for fraction, least in (PRECISION[d] for d in dict.fromkeys(dtypes)):
        widest = torch.maximum(widest, torch.ldexp(one, exponent.clamp(min=least) - fraction))
    return widest


def bits(values: torch.Tensor) -> torch.Tensor:
    """The bits of each element, as integers."""
    import torch

    return values.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()])


def _places(values: torch.Tensor) -> torch.Tensor:
    """The place of each value in the order of its dtype; both zeros are at 0."""
    import torch

    found = bits(values).to(torch.int64)
    return torch.where(found < 0, -(found + (1 << (8 * values.element_size() - 1))), found)
