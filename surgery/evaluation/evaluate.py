"""The one evaluator: any lazy tensor -> its bytes, in windows of bounded size.

Movement is gathered (`read.py`), without torch. Each node that is computed has an evaluator of its own, a row of
`FILLED`; those ask the workspace for what their node is made of, which is handed `into` here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NotSupported
from ..lazy.dtypes import BF16, F16, F32, F64
from ..lazy.runs import to_bytes, window
from ..lazy.tensor import (
    Before,
    Constant,
    Decoded,
    Encoded,
    File,
    Fresh,
    Made,
    Mean,
    Measured,
    Norms,
    Picked,
    Product,
    Random,
    Restored,
    Rowwise,
    Stored,
    Sum,
    Tensor,
    Zeros,
    substitute,
)
from .arithmetic import TORCH_NAMES, exact, torch_dtype
from .corrections import block_of
from .decoding import fill_decoded
from .draw import draw
from .fresh import fill_constant, fill_fresh
from .made import fill_made
from .means import fill_mean
from .measured import fill_measured
from .nearest import fill_encoded
from .norms import fill_norms
from .picked import fill_picked
from .products import fill_product
from .rowwise import fill_rowwise
from .scratch import scratch_of, tiled_in
from .strided import is_turned
from .sums import fill_sum
from .tiles import ROWS, columns_of
from .undoing import fill_before, fill_restored
from .workspace import DEFAULT_MEMORY, Workspace

if TYPE_CHECKING:
    import torch

IN_CACHE = 1 << 20  # bytes of tensors moved together that are written while the cache still holds them

EXPONENTS = {F16: 0x7C00, BF16: 0x7F80, F32: 0x7F80_0000, F64: 0x7FF0_0000_0000_0000}

FILLED: dict[type, Callable[[Any, int, int, memoryview, Workspace], None]] = {
    Sum: fill_sum,
    Norms: fill_norms,
    Mean: fill_mean,
    Picked: fill_picked,
    Product: fill_product,
    Made: fill_made,
    Rowwise: fill_rowwise,
    Measured: fill_measured,
    Decoded: fill_decoded,
    Encoded: fill_encoded,
    Fresh: fill_fresh,
    Constant: fill_constant,
    Before: fill_before,
    Restored: fill_restored,
    Random: lambda tensor, start, stop, out, work: draw(tensor, start, stop, out),
}


def workspace_of(budget: int, aliases: dict[str, str] | None = None) -> Workspace:
    """A workspace of `budget` bytes; `aliases` gives the real place of files made by the run. Close it."""
    return Workspace(into, budget, aliases)


def blocks(tensor: Tensor, start: int, stop: int, work: Workspace) -> Iterator[tuple[int, memoryview]]:
    """The bytes of elements [start, stop) of `tensor`, window by window: (byte offset from `start`, bytes).

    A window is valid until the next. Windows hold whole bytes, and whole tiles of a sum where they fit.
    """
    bits, step = tensor.dtype.bits, _step(tensor, work)
    for at in range(start, stop, step):
        end = min(at + step, stop)
        out = work.buffer("window", (end - at) * bits // 8)
        into(tensor, at, end, out, work)
        yield (at - start) * bits // 8, out


def _step(tensor: Tensor, work: Workspace) -> int:
    """Elements of a window."""
    step = max(8, work.window * 8 // tensor.dtype.bits // 8 * 8)
    if isinstance(tensor, Restored):
        whole = block_of(tensor.shape)
        step = max(whole, step // whole * whole)
    columns = next((columns_of(leaf) for leaf in tiled_in(tensor) if leaf.shape), 1)
    if step < ROWS * columns <= work.widest * 8 // tensor.dtype.bits:  # a tile of fewer rows costs as much
        step = ROWS * columns
    unit = next((n for n in (ROWS * columns, columns) if columns > 1 and step >= n), 1)
    return step // unit * unit


def into(tensor: Tensor, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of `tensor`."""
    item = tensor.dtype.bits // 8
    if fill := FILLED.get(type(tensor)):
        fill(tensor, start, stop, out, work)
    elif isinstance(tensor, Stored) and item:
        work.reader.read(tensor.file, tensor.offset + start * item, out, tensor.offset + tensor.nbytes)
    else:
        _gather(tensor, start, stop, out, work)


def _gather(tensor: Tensor, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of what movement made."""
    item = tensor.dtype.bits // 8
    pieces = window(work.pieces(tensor), start, stop, tensor.size)
    work.reader.gather([to_bytes(p) for p in pieces if isinstance(p.leaf, Stored | Zeros)], out)
    for piece in pieces:
        if not isinstance(piece.leaf, Stored | Zeros):
            for at, to in piece.runs():
                into(piece.leaf, at, at + piece.run, out[to * item : (to + piece.run) * item], work)


def blocks_together(
    fills: Sequence[tuple[Tensor, int, int]], rows: int, work: Workspace
) -> Iterator[tuple[int, int, memoryview]]:
    """The bytes of elements [start, stop) of each tensor, moved from one stored tensor of which each byte is read
    once: (which tensor, byte offset from its `start`, bytes).

    All are gone through in the same steps, of the `rows` that each has. Windows are valid until those of the next
    rows.
    """
    steps = [(stop - start) // rows for _, start, stop in fills]
    items = [tensor.dtype.bits for tensor, _, _ in fills]
    row = sum(step * bits for step, bits in zip(steps, items, strict=True)) // 8
    turned = any(is_turned(piece.dims) for tensor, _, _ in fills for piece in work.pieces(tensor))
    most = max(1, (work.turned if turned else IN_CACHE) // row)
    for first in range(0, rows, most):
        count, begun, wanted = min(most, rows - first), 0, []
        whole = work.aligned(count * row)
        for (tensor, start, _), step, bits in zip(fills, steps, items, strict=True):
            at, size = start + first * step, count * step * bits // 8
            pieces = window(work.pieces(tensor), at, at + count * step, tensor.size)
            wanted.append(([to_bytes(piece) for piece in pieces], whole[begun : begun + size]))
            begun += size
        work.reader.gather_all(wanted)
        for which, (_, out) in enumerate(wanted):
            yield which, first * steps[which] * items[which] // 8, out


def nonfinite(tensor: Tensor, work: Workspace) -> int:
    """How many elements are NaN or infinite: those whose exponent is all ones, of floats that have such. Loads no
    torch.
    """
    import numpy

    if tensor.dtype not in EXPONENTS:
        return _nonfinite_by_torch(tensor, work)
    ones, count = EXPONENTS[tensor.dtype], 0
    for _, data in blocks(tensor, 0, tensor.size, work):
        words = numpy.frombuffer(data, dtype=f"<u{tensor.dtype.bits // 8}")
        count += int(numpy.count_nonzero((words & words.dtype.type(ones)) == ones))
    return count


def _nonfinite_by_torch(tensor: Tensor, work: Workspace) -> int:
    import torch

    dtype, count = torch_dtype(tensor.dtype), 0
    for _, data in blocks(tensor, 0, tensor.size, work):
        values = torch.frombuffer(data, dtype=dtype)
        finite = torch.isfinite(values if tensor.dtype.bits > 8 else values.to(torch.float32))
        if not bool(finite.all()):
            count += int((~finite).sum())
    return count


def settle(tensor: Tensor, folder: str, work: Workspace) -> Tensor:
    """The tensor with all that must be computed as a whole written to files in `folder`, and read from there."""
    while (inner := scratch_of(tensor)) is not None:
        path = os.path.join(folder, str(len(os.listdir(folder))))
        with open(path, "wb") as stream:
            for _, data in blocks(inner, 0, inner.size, work):
                stream.write(data)
        status = os.stat(path)
        file = File(path, status.st_size, status.st_mtime_ns)
        tensor = substitute(tensor, inner, Stored(inner.dtype, inner.shape, file, 0))
    return tensor


def load(tensor: Tensor) -> torch.Tensor:
    """The value of a lazy tensor, as a torch tensor of its shape and dtype."""
    import torch

    name = TORCH_NAMES.get(tensor.dtype.name)
    if name is None:
        raise NotSupported(f"torch has no dtype for {tensor.dtype}", help="read the bytes with surgery.evaluate.blocks")
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=getattr(torch, name))
    raw, work = bytearray(tensor.nbytes), workspace_of(DEFAULT_MEMORY)
    with tempfile.TemporaryDirectory() as folder, exact():
        try:
            tensor = settle(tensor, folder, work)
            for at, data in blocks(tensor, 0, tensor.size, work):
                raw[at : at + len(data)] = data
        finally:
            work.close()
    return torch.frombuffer(raw, dtype=getattr(torch, name)).view(tensor.shape)
