"""The one evaluator: any lazy tensor -> its bytes, in windows of bounded size.

Movement is gathered (`read.py`), without torch. A `Sum` is computed in torch by the block law:

    float32 tiles of 64 rows and 1024 columns, of which a smaller rest is padded; the inner dimension in chunks of at
    most 256, in order; one torch thread per worker; full float32 precision

`torch.mm` of a part of a matrix is in general not bit-equal to the same part of the whole; tiles of constant shape are, so
the bytes depend neither on the number of workers, nor on the memory budget, nor on which rows and columns are asked for.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ..errors import NotSupported, VerificationFailed
from ..lazy.dtypes import F16, F32, F64, Dtype
from ..lazy.runs import Piece, lower, to_bytes, window
from ..lazy.tensor import (
    Before,
    File,
    Gain,
    LowRank,
    Norms,
    Random,
    Restored,
    Stored,
    Sum,
    Tensor,
    Zeros,
    children,
    has_arithmetic,
    narrow,
    substitute,
)
from .corrections import DIGEST, block_of, correct, digest
from .draw import draw
from .losses import HUGE, Loss, overflow, rounded_away, samples
from .read import SPAN, Reader

if TYPE_CHECKING:
    import torch

ROWS, COLUMNS, INNER = 64, 1024, 256
BAND = 4 * COLUMNS  # columns that are worked on at once
TILES = ROWS * BAND  # elements that are worked on at once, in float32: 64 rows of 4096 columns, or more rows of fewer
LEAST_BUDGET = 20_000_000  # bytes that one worker with sums to compute cannot do without
DEFAULT_MEMORY = 96_000_000  # bytes of buffers, all workers together
SCRATCH = "scratch"  # the path under which a plan names the file of its scratch tensors

TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


class Workspace:
    """What one worker needs: open files and buffers, together at most `budget` bytes."""

    def __init__(self, budget: int, aliases: dict[str, str] | None = None) -> None:
        self.reader = Reader(aliases, budget // 8)
        self.window = min(8 << 20, budget // 8)  # bytes of a value that are made at once
        self.depth = 0  # of sums within sums, each with a buffer of its own for its base
        self.loss = Loss()  # what rounding did to the sums that were made since the last `take_loss`
        self._rights_budget = budget // 4
        self._buffers: dict[str, bytearray] = {}
        self._rights: dict[int, tuple[LowRank, torch.Tensor]] = {}
        self._lowered: dict[int, tuple[Tensor, list[Piece]]] = {}
        self._halves: dict[tuple[int, bool], tuple[LowRank, list[torch.Tensor]]] = {}
        self._frames: dict[int, tuple[Restored, list[int]]] = {}

    def buffer(self, use: str, size: int) -> memoryview:
        """`size` bytes for `use`, the same memory at each call: fresh pages cost more than the arithmetic."""
        if len(self._buffers.get(use, b"")) < size:
            self._buffers[use] = bytearray(size)
        return memoryview(self._buffers[use])[:size]

    def pieces(self, tensor: Tensor) -> list[Piece]:
        """`lower(tensor)`, remembered for the next windows of the same tensor."""
        if id(tensor) not in self._lowered:
            if len(self._lowered) >= 64:
                self._lowered.clear()
            self._lowered[id(tensor)] = (tensor, lower(tensor))
        return self._lowered[id(tensor)][1]

    def right(self, delta: LowRank, first: int, stop: int, begin: int, end: int, kind: Any) -> torch.Tensor:
        """Rows [first, stop) and columns [begin, end) of a delta's right factor; there may be up to a tile beyond its last."""
        assert delta.right is not None
        rank, columns = delta.right.shape
        size = rank * (columns + COLUMNS) * kind.itemsize
        if size <= self._rights_budget:
            found = self._rights.get(id(delta))
            if found is None:
                if sum(t.nbytes for _, t in self._rights.values()) + size > self._rights_budget:
                    self._rights.clear()
                found = (delta, _floats(delta.right, (0, rank, 0, columns), (rank, columns + COLUMNS), kind, self, ""))
                self._rights[id(delta)] = found
            return found[1][first:stop, begin:end]
        part = narrow(narrow(delta.right, 0, first, stop - first), 1, begin, min(end, columns) - begin)
        return _floats(part, (0, stop - first, 0, min(end, columns) - begin), (stop - first, end - begin), kind, self, "right")

    def halves(self, delta: LowRank, begin: int, end: int, *, fine: bool) -> list[tuple[torch.Tensor, int]]:
        """The right factor of a delta as integers for `_product`, at least columns [begin, end): (matrix, its first column) each."""
        assert delta.right is not None
        rank, columns = delta.right.shape
        size = rank * columns * 8 * (2 if fine else 1)
        key = (id(delta), fine)
        if key not in self._halves:
            if size > self._rights_budget:
                return [(half, begin) for half in _halved(delta.right, begin, end, self, fine=fine)]
            if sum(h.nbytes for _, halves in self._halves.values() for h in halves) + size > self._rights_budget:
                self._halves.clear()
            self._halves[key] = (delta, _halved(delta.right, 0, columns, self, fine=fine))
        return [(half, 0) for half in self._halves[key][1]]

    def frame(self, restored: Restored, block: int) -> tuple[bytes, bytes]:
        """The corrections of a block and its digest, from the record."""
        if id(restored) not in self._frames:
            self._frames.clear()
            sizes = array("I", bytes(self._read(restored.sizes, 0, restored.sizes.nbytes)))
            if sys.byteorder == "big":
                sizes.byteswap()
            self._frames[id(restored)] = restored, [0, *accumulate(sizes)]
        ends = self._frames[id(restored)][1]
        kept = bytes(self._read(restored.digests, block * DIGEST, DIGEST))
        return bytes(self._read(restored.frames, ends[block], ends[block + 1] - ends[block])), kept

    def _read(self, tensor: Stored, at: int, nbytes: int) -> memoryview:
        data = self.buffer("record", nbytes)
        self.reader.read(tensor.file, tensor.offset + at, data)
        return data

    def take_loss(self) -> Loss:
        """What rounding did to the sums since the last call."""
        taken, self.loss = self.loss, Loss()
        return taken

    def close(self) -> None:
        """Close files, free buffers."""
        self.reader.close()
        self._buffers.clear()
        self._rights.clear()
        self._halves.clear()


def blocks(tensor: Tensor, start: int, stop: int, work: Workspace) -> Iterator[tuple[int, memoryview]]:
    """The bytes of elements [start, stop) of `tensor`, window by window: (byte offset from `start`, bytes).

    A window is valid until the next. Windows hold whole bytes, and whole tiles of a sum where they fit.
    """
    bits = tensor.dtype.bits
    step = max(8, work.window * 8 // bits // 8 * 8)
    if isinstance(tensor, Restored):
        whole = block_of(tensor.shape)
        step = max(whole, step // whole * whole)
    columns = next((leaf.shape[-1] for leaf in _sums(tensor) if leaf.shape), 1)
    for whole in (ROWS * columns, columns):
        if columns > 1 and step >= whole:
            step = step // whole * whole
            break
    for at in range(start, stop, step):
        end = min(at + step, stop)
        out = work.buffer("window", (end - at) * bits // 8)
        into(tensor, at, end, out, work)
        yield (at - start) * bits // 8, out


def into(tensor: Tensor, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of `tensor`."""
    item = tensor.dtype.bits // 8
    if isinstance(tensor, Sum):
        columns = tensor.shape[-1] if tensor.shape else 1
        for at, end in _rows(start, stop, columns):
            _compute(tensor, at, end, out[(at - start) * item : (end - start) * item], work)
        return
    if isinstance(tensor, Norms):
        _norms(tensor, start, stop, out, work)
        return
    if isinstance(tensor, Before):
        for at, end in _rows(start, stop, tensor.shape[-1] if tensor.shape else 1):
            _predict(tensor, at, end, out[(at - start) * item : (end - start) * item], work)
        return
    if isinstance(tensor, Restored):
        _restore(tensor, start, stop, out, work)
        return
    if isinstance(tensor, Random):
        draw(tensor, start, stop, out)
        return
    if isinstance(tensor, Stored) and item:
        work.reader.read(tensor.file, tensor.offset + start * item, out, tensor.offset + tensor.nbytes)
        return
    pieces = window(work.pieces(tensor), start, stop, tensor.size)
    work.reader.gather([to_bytes(p) for p in pieces if isinstance(p.leaf, Stored | Zeros)], out)
    for piece in pieces:
        if not isinstance(piece.leaf, Stored | Zeros):
            for at, to in piece.runs():
                into(piece.leaf, at, at + piece.run, out[to * item : (to + piece.run) * item], work)


def scratch_of(tensor: Tensor) -> Tensor | None:
    """A tensor inside `tensor` that must be computed as a whole, before it is used: what is not row-local."""
    for piece in lower(tensor) if has_arithmetic(tensor) else []:
        leaf = piece.leaf
        if isinstance(leaf, Norms):
            return scratch_of(leaf.of) or leaf
        if not isinstance(leaf, Sum):
            continue
        for child in children(leaf):
            if inner := scratch_of(child):
                return inner
        for factor in (f for d in leaf.deltas for f in d.factors):
            if has_arithmetic(factor):
                return next(t for t in _sums(factor))
        columns = leaf.shape[-1] if leaf.shape else 1
        whole = piece.size == leaf.size and piece.run == leaf.size
        strides = (piece.at, piece.run, *(d.at for d in (piece.dims[:-1] if piece.run > 1 else piece.dims)))
        if not whole and any(n % columns for n in strides):
            return leaf
    return None


def nonfinite(tensor: Tensor, work: Workspace) -> int:
    """How many elements are NaN or infinite. The dtype is one of floats that torch has."""
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
    raw, work = bytearray(tensor.nbytes), Workspace(DEFAULT_MEMORY)
    with tempfile.TemporaryDirectory() as folder, exact():
        try:
            tensor = settle(tensor, folder, work)
            for at, data in blocks(tensor, 0, tensor.size, work):
                raw[at : at + len(data)] = data
        finally:
            work.close()
    return torch.frombuffer(raw, dtype=getattr(torch, name)).view(tensor.shape)


@contextmanager
def exact() -> Iterator[None]:
    """One torch thread, full float32 precision: part of the block law. Restored afterwards."""
    import torch

    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """What torch calls it."""
    import torch

    return getattr(torch, TORCH_NAMES[dtype.name])


def arithmetic_identity() -> str:
    """What computed bytes depend on besides their inputs: torch's version and the CPU's capability."""
    import torch

    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()}"


def _compute(total: Sum, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop) of a sum: whole rows, or a part of one row."""
    import torch

    torch.get_num_threads()  # a thread of ours takes over the one torch thread of `exact` only when it asks
    columns = total.shape[-1] if total.shape else 1
    first, begin = divmod(start, columns)
    rows = max(1, (stop - start) // columns)
    width = (stop - start) // rows
    kind = torch.float64 if F64 in (total.dtype, total.base.dtype) else torch.float32

    same = total.base.dtype == total.dtype
    raw = out if same else work.buffer(f"base {work.depth}", (stop - start) * total.base.dtype.bits // 8)
    work.depth += 1
    into(total.base, start, stop, raw, work)
    work.depth -= 1
    base = torch.frombuffer(raw, dtype=torch_dtype(total.base.dtype)).view(rows, width)
    result = torch.frombuffer(out, dtype=torch_dtype(total.dtype)).view(rows, width)

    high = min(1024, TILES // _padded(min(width, BAND), COLUMNS) // ROWS * ROWS)
    buffer = torch.frombuffer(work.buffer("tiles", TILES * kind.itemsize), dtype=kind)
    watched = bool(total.deltas or total.gain) and not work.depth
    for c in range(0, width, BAND):
        wide = min(BAND, width - c)
        for r in range(0, rows, high):
            tall = min(high, rows - r)
            shape = _padded(tall, ROWS), _padded(wide, COLUMNS)
            values = buffer[: shape[0] * shape[1]].view(shape)
            values[:tall, :wide].copy_(base[r : r + tall, c : c + wide])
            for delta in total.deltas:
                _accumulate(values, delta, first + r, tall, begin + c, kind, work)
            if total.gain:
                _scale(values, total.gain, first + r, tall, begin + c, wide, work)
            here = slice(r, r + tall), slice(c, c + wide)
            looked = samples(first + r, tall, total.size // columns) if watched else []
            before = [base[here][few].to(kind, copy=True) for few in looked]  # the result may lie where the base does
            made = values[:tall, :wide]
            usual = abs(float(made.sum())) < HUGE  # false for NaN too
            if not usual:
                work.loss.overflowed += overflow(base[here], made.to(result.dtype))
            rounded = result[here].copy_(made)
            if usual and total.dtype == F16 and not math.isfinite(float(rounded.sum())):
                work.loss.overflowed += overflow(made, rounded)
            for few, old in zip(looked, before, strict=True):
                work.loss += rounded_away(old, made[few], rounded[few])


def _predict(before: Before, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop) of what the base of a sum was most likely: whole rows, or a part of one row.

    Only elementwise arithmetic, and products in which every sum is exact: the same bits whatever the machine, the threads and
    the elements asked for.
    """
    import torch

    torch.get_num_threads()
    columns = before.shape[-1] if before.shape else 1
    first, begin = divmod(start, columns)
    rows = max(1, (stop - start) // columns)
    width = (stop - start) // rows
    fine = before.dtype in (F32, F64)
    kind = torch.float64 if fine else torch.float32
    raw = work.buffer(f"base {work.depth}", (stop - start) * before.after.dtype.bits // 8)
    work.depth += 1
    into(before.after, start, stop, raw, work)
    work.depth -= 1
    after = torch.frombuffer(raw, dtype=torch_dtype(before.after.dtype)).view(rows, width)
    result = torch.frombuffer(out, dtype=torch_dtype(before.dtype)).view(rows, width)
    high = max(1, TILES // 2 // min(width, BAND))
    for r in range(0, rows, high):
        tall = min(high, rows - r)
        lefts = [_left(delta, first + r, tall, work, fine=fine) for delta in before.deltas]
        for c in range(0, width, BAND):
            wide = min(BAND, width - c)
            values = _buffer(work, "tiles", (tall, wide), kind).copy_(after[r : r + tall, c : c + wide])
            if before.gain:
                _scale(values, before.gain, first + r, tall, begin + c, wide, work, undo=True)
            for delta, left in zip(before.deltas, lefts, strict=True):
                product = _product(delta, left, first + r, begin + c, begin + c + wide, work, fine=fine)
                values.sub_(product if fine else _buffer(work, "rounded", (tall, wide), kind).copy_(product))
            result[r : r + tall, c : c + wide].copy_(values)


def _left(delta: LowRank, row: int, tall: int, work: Workspace, *, fine: bool) -> torch.Tensor:
    """Rows of a delta's left factor times its scale, for `_product`."""
    import torch

    if delta.right is None:
        return torch.empty(tall, 0)
    rank = delta.left.shape[-1]
    left = _floats(delta.left, (row, row + tall, 0, rank), (tall, rank), torch.float64, work, "left").mul_(delta.scale)
    return _integers(left, 1, 24 if fine else 15)


def _product(delta: LowRank, left: torch.Tensor, row: int, begin: int, end: int, work: Workspace, *, fine: bool) -> torch.Tensor:
    """Rows from `row` on and columns [begin, end) of a delta in float64, from factors rounded to integers times powers of two.

    Integers of 15 bits, or of 24 times the halves of 24: sums of up to 2**16 such products are exact in float64, in any order.
    """
    import torch

    if delta.right is None:
        part, shape = (row, row + len(left), begin, end), (len(left), end - begin)
        return _floats(delta.left, part, shape, torch.float64, work, "left").mul_(delta.scale)
    halves = [half[:, begin - at : end - at] for half, at in work.halves(delta, begin, end, fine=fine)]
    product = torch.mm(left, halves[0], out=_buffer(work, "product", (len(left), end - begin), torch.float64))
    for half in halves[1:]:
        product.add_(left @ half)
    return product


def _buffer(work: Workspace, use: str, shape: tuple[int, int], kind: Any) -> torch.Tensor:
    """A matrix in the workspace's memory for `use`."""
    import torch

    return torch.frombuffer(work.buffer(use, shape[0] * shape[1] * kind.itemsize), dtype=kind).view(shape)


def _integers(values: torch.Tensor, axis: int, bits: int) -> torch.Tensor:
    """Float64 values rounded to integers of `bits` bits times a power of two, which is one along `axis`."""
    import torch

    unit = (values.abs().amax(axis, keepdim=True).view(torch.int64) & (0x7FF << 52)).view(torch.float64)
    unit = torch.where(unit == 0, 1.0, unit * 2.0 ** (1 - bits))
    return torch.round_(values / unit).mul_(unit)


def _halved(right: Tensor, begin: int, end: int, work: Workspace, *, fine: bool) -> list[torch.Tensor]:
    """Columns [begin, end) of a right factor as integers of 15 bits, or as two that make one of 24, times powers of two."""
    import torch

    rank = right.shape[0]
    part = narrow(right, 1, begin, end - begin)
    values = _integers(_floats(part, (0, rank, 0, end - begin), (rank, end - begin), torch.float64, work, ""), 0, 24 if fine else 15)
    if not fine:
        return [values]
    high = _integers(values, 0, 12)
    return [high, values - high]


def _restore(restored: Restored, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop) of a tensor as it was: predicted, corrected, and compared with its digest, block by block."""
    whole, bits = block_of(restored.shape), restored.dtype.bits
    for block in range(start // whole, -(-stop // whole)):
        low, high = block * whole, min((block + 1) * whole, restored.size)
        inside = start <= low and high <= stop
        data = out[(low - start) * bits // 8 : (high - start) * bits // 8] if inside else work.buffer("block", (high - low) * bits // 8)
        into(restored.predicted, low, high, data, work)
        frame, kept = work.frame(restored, block)
        where = f"{restored.frames.file.path}: {restored.name}, elements {low} to {high}"
        if frame:
            correct(frame, data, bits, where)
        if digest(data) != kept:
            tip = "the merged tensor, or its record, was changed since the merge: take both from a copy"
            raise VerificationFailed("what is restored is not what was", where=[where], help=tip)
        if not inside:
            a, b = max(start, low), min(stop, high)
            out[(a - start) * bits // 8 : (b - start) * bits // 8] = data[(a - low) * bits // 8 : (b - low) * bits // 8]


def _accumulate(values: torch.Tensor, delta: LowRank, row: int, tall: int, column: int, kind: Any, work: Workspace) -> None:
    """Add `scale * left @ right`, or `scale * left`, to the tiles that begin at (row, column), by the block law."""
    height, width = values.shape
    if delta.right is None:
        stop = min(column + width, delta.left.shape[-1])
        values.add_(_floats(delta.left, (row, row + tall, column, stop), (height, width), kind, work, "left").mul_(delta.scale))
        return
    rank = delta.right.shape[0]
    for k in range(0, rank, INNER):
        stop = min(k + INNER, rank)
        right = work.right(delta, k, stop, column, column + width, kind)
        left = _floats(delta.left, (row, row + tall, k, stop), (height, stop - k), kind, work, "left")
        for r in range(0, height, ROWS):
            for c in range(0, width, COLUMNS):
                tile = values[r : r + ROWS, c : c + COLUMNS]
                tile.addmm_(left[r : r + ROWS], right[:, c : c + COLUMNS], alpha=delta.scale)


def _scale(values: torch.Tensor, gain: Gain, row: int, tall: int, column: int, wide: int, work: Workspace, *, undo: bool = False) -> None:
    """Multiply the tiles that begin at (row, column) by the gain of their rows or columns, or divide them by it."""
    import torch

    first, count = (column, wide) if gain.columns else (row, tall)
    found = []
    for factor in gain.factors:
        raw = work.buffer("gain", count * factor.dtype.bits // 8)
        into(factor, first, first + count, raw, work)
        found.append(torch.frombuffer(raw, dtype=torch_dtype(factor.dtype)).to(values.dtype, copy=True))
    quotient = found[1] / found[0] if undo else found[0] / found[1]
    part = values[:, :wide] if gain.columns else values[:tall]
    part.mul_(quotient if gain.columns else quotient[:, None])


def _norms(norms: Norms, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Elements [start, stop) of row or column norms: squares summed in float64, in tiles of constant shape and order."""
    import torch

    of = norms.of
    columns = of.shape[-1]
    rows = of.size // columns
    result = torch.frombuffer(out, dtype=torch.float32)
    sums = torch.zeros(stop - start, dtype=torch.float64)
    first, last = (0, rows) if norms.columns else (start, stop)
    for row in range(first, last, ROWS):
        tall = min(ROWS, last - row)
        raw = work.buffer("norms", tall * columns * of.dtype.bits // 8)
        into(of, row * columns, (row + tall) * columns, raw, work)
        values = torch.frombuffer(raw, dtype=torch_dtype(of.dtype)).view(tall, columns).double()
        if norms.columns:
            for line in values[:, start:stop]:
                sums.addcmul_(line, line)
        else:
            for c in range(0, columns, COLUMNS):
                tile = torch.zeros(ROWS, COLUMNS, dtype=torch.float64)
                tile[:tall, : min(COLUMNS, columns - c)] = values[:, c : c + COLUMNS]
                sums[row - first : row - first + tall] += tile.square_().sum(1)[:tall]
    result.copy_(sums.sqrt_())


def _floats(tensor: Tensor, part: tuple[int, int, int, int], shape: tuple[int, int], kind: Any, work: Workspace, use: str) -> torch.Tensor:
    """`part` = rows [0, 1) and columns [2, 3) of a factor, as float32 or float64 in the corner of zeros of `shape`.

    With `use` it lies in that buffer of the workspace, until the next call; without, in memory of its own.
    """
    import torch

    columns = tensor.shape[-1]
    first, last, begin, end = part
    size = shape[0] * shape[1]
    flat = torch.frombuffer(work.buffer(use, size * kind.itemsize), dtype=kind) if use else torch.empty(size, dtype=kind)
    value = flat.view(shape)
    value[last - first :].zero_()
    value[:, end - begin :].zero_()
    step = max(1, SPAN // (columns * tensor.dtype.bits // 8))
    for r in range(first, last, step):
        stop = min(r + step, last)
        raw = work.buffer("factor", (stop - r) * columns * tensor.dtype.bits // 8)
        into(tensor, r * columns, stop * columns, raw, work)
        rows = torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)).view(-1, columns)
        value[r - first : stop - first, : end - begin].copy_(rows[:, begin:end])
    return value


def _padded(size: int, tile: int) -> int:
    return -(-size // tile) * tile


def _rows(start: int, stop: int, columns: int) -> Iterator[tuple[int, int]]:
    """[start, stop) cut into a part of a row, whole rows, and a part of a row, as far as there are any."""
    head = min(-(-start // columns) * columns, stop)
    tail = max(stop // columns * columns, head)
    yield from ((a, b) for a, b in ((start, head), (head, tail), (tail, stop)) if a < b)


def _sums(tensor: Tensor) -> Iterator[Sum]:
    if isinstance(tensor, Sum):
        yield tensor
        return
    for child in children(tensor):
        yield from _sums(child)
