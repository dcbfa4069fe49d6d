"""What undoes a sum: `Before`, which says what its base most likely was, and `Restored`, which makes that what it
was.

A prediction is elementwise arithmetic alone, and products in which every sum is exact: the same bits whatever the
machine, the threads and the elements asked for.
"""

from __future__ import annotations

import sys
from array import array
from itertools import accumulate
from typing import TYPE_CHECKING

from ..errors import FormatError, VerificationFailed
from ..lazy.dtypes import F32, F64
from ..lazy.tensor import Before, Restored, Stored
from .arithmetic import one_thread, torch_dtype
from .corrections import DIGEST, block_of, correct, digest
from .kinds import added, applied
from .tiles import BAND, TILES, Area, areas, columns_of, matrix

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_before(before: Before, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of what the base of a sum was most likely."""
    item = before.dtype.bits // 8
    for at, end, area in areas(start, stop, columns_of(before)):
        _predict(before, at, end, area, out[(at - start) * item : (end - start) * item], work)


def _predict(before: Before, start: int, stop: int, area: Area, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop): those of `area`, whole rows or a part of one row."""
    import torch

    one_thread()
    raw = work.buffer(f"base {work.depth}", (stop - start) * before.after.dtype.bits // 8)
    work.fill_under(before.after, start, stop, raw)
    after = torch.frombuffer(raw, dtype=torch_dtype(before.after.dtype)).view(area.tall, area.wide)
    result = torch.frombuffer(out, dtype=torch_dtype(before.dtype)).view(area.tall, area.wide)
    high = max(1, TILES // 2 // min(area.wide, BAND))
    for r in range(0, area.tall, high):
        rows = Area(area.row + r, min(high, area.tall - r), area.column, area.wide)
        _predict_rows(before, rows, after[r : r + rows.tall], result[r : r + rows.tall], work)


def _predict_rows(before: Before, area: Area, after: torch.Tensor, result: torch.Tensor, work: Workspace) -> None:
    """A band of columns at a time: divide by the gain, subtract the deltas, round."""
    import torch

    fine = before.dtype in (F32, F64)
    kind = torch.float64 if fine else torch.float32
    exact = [added(delta).exactly for delta in before.deltas]
    products = [
        make(delta, area.row, area.tall, work, fine=fine)
        for make, delta in zip(exact, before.deltas, strict=True)
        if make
    ]
    for part, _, columns in area.parts(area.tall):
        shape = part.tall, part.wide
        values = matrix(work, "tiles", shape, kind).copy_(after[:, columns])
        if before.gain:
            applied(before.gain).scale(values, before.gain, part, work, undo=True)
        for product in products:
            found = product(part.column, part.column + part.wide)
            values.sub_(found if fine else matrix(work, "rounded", shape, kind).copy_(found))
        result[:, columns].copy_(values)


def fill_restored(restored: Restored, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of a tensor as it was, block by block."""
    whole, bits = block_of(restored.shape), restored.dtype.bits
    for block in range(start // whole, -(-stop // whole)):
        low, high = block * whole, min((block + 1) * whole, restored.size)
        a, b = max(start, low), min(stop, high)
        target = out[(a - start) * bits // 8 : (b - start) * bits // 8]
        if (a, b) == (low, high):
            _restore(restored, block, low, high, target, work)
        else:
            data = work.buffer("block", (high - low) * bits // 8)
            _restore(restored, block, low, high, data, work)
            target[:] = data[(a - low) * bits // 8 : (b - low) * bits // 8]


def _restore(restored: Restored, block: int, low: int, high: int, data: memoryview, work: Workspace) -> None:
    """One block: predicted, corrected, and compared with its digest."""
    try:
        work.fill(restored.predicted, low, high, data)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise _damaged(restored) from error  # what its record says of it cannot be computed
    frame, kept = _frame(restored, block, work)
    where = f"{restored.frames.file.path}: {restored.name}, elements {low} to {high}"
    if frame:
        correct(frame, data, restored.dtype.bits, where)
    if digest(data) != kept:
        tip = "the merged tensor, or its record, was changed since the merge: take both from a copy"
        raise VerificationFailed("what is restored is not what was", where=[where], help=tip)


def _frame(restored: Restored, block: int, work: Workspace) -> tuple[bytes, bytes]:
    """The corrections of a block and its digest, from the record."""
    ends = work.last("frames", restored, lambda: _ends(restored, work))
    kept = _bytes(restored.digests, block * DIGEST, DIGEST, work)
    return _bytes(restored.frames, ends[block], ends[block + 1] - ends[block], work), kept


def _ends(restored: Restored, work: Workspace) -> list[int]:
    """Where the corrections of each block begin, and where the last ones end."""
    sizes = array("I", _bytes(restored.sizes, 0, restored.sizes.nbytes, work))
    if sys.byteorder == "big":
        sizes.byteswap()
    most = block_of(restored.shape) * restored.dtype.bits // 8 + 1  # a frame is no longer than its block and its mode
    if sum(sizes) != restored.frames.nbytes or max(sizes, default=0) > most:
        raise _damaged(restored)
    return [0, *accumulate(sizes)]


def _damaged(restored: Restored) -> FormatError:
    where = [f"{restored.frames.file.path}: {restored.name}"]
    return FormatError("the undo record is damaged", where=where, help="restore the record from a copy")


def _bytes(tensor: Stored, at: int, nbytes: int, work: Workspace) -> bytes:
    data = work.buffer("record", nbytes)
    work.reader.read(tensor.file, tensor.offset + at, data)
    return bytes(data)
