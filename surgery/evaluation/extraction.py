"""The best low rank of the difference of two matrices, which is never there as a whole: it is made in blocks of rows.

A randomised singular value decomposition with one power step: four passes over the blocks, and (rows + columns) *
columns of the sketch in memory, 8 more than the ranks that are looked for. Blocks and sketch follow from shape, name
and seed alone, so the same call gives the same factors, with any memory and any workers.

    1  Y = D Ω, ‖D‖²        2  Z = Dᵀ orth(Y)        3  Y = D orth(Z)        4  B = orth(Y)ᵀ D, decomposed

Subtracted in float32, of F64 in float64. Source: Halko, Martinsson, Tropp, "Finding structure with randomness", 2011.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AdapterError
from ..lazy.dtypes import F64
from ..lazy.tensor import Tensor, stored
from .arithmetic import one_thread, torch_dtype
from .evaluate import settle, workspace_of
from .shortening import Choose, cut
from .tiles import ROWS
from .workspace import DEFAULT_MEMORY, Workspace

if TYPE_CHECKING:
    import torch

MORE = 8  # columns of the sketch beyond the ranks that are looked for
BLOCK = 1 << 20  # elements of a block, or 64 rows
NOISE = 1e-6  # singular values below that part of the largest are float32's own


@dataclass(frozen=True)
class Extracted:
    """`left` (rows, rank) and `right` (rank, columns); the squares of the singular values that were looked at, the
    largest first, and of all there are.
    """

    left: torch.Tensor
    right: torch.Tensor
    rank: int
    squares: list[float]
    total: float


@dataclass(frozen=True)
class Pair:
    """Two tensors of one shape: a matrix, and what became of it. `name` is for errors, `key` for the sketch."""

    base: Tensor
    tuned: Tensor
    name: str
    key: str


def extracted(pair: Pair, most: int, choose: Choose, held: int) -> Extracted | None:
    """The best approximation of the difference, of the rank that is chosen of up to `most`; None where the two are
    equal. Blocks of up to `held` bytes together are kept in memory, else made again for each pass.

    Raises AdapterError for NaN and infinity in either.
    """
    import torch

    one_thread()
    with _blocks(pair, held) as blocks:
        rows, columns = shape_of(pair.base)
        width = min(most + MORE, rows, columns)
        sketch, total = _sketch(pair.key, columns, width), 0.0
        y = torch.empty(rows, width)
        for at, block in blocks():
            total += _square(block, pair.name)
            torch.mm(block, sketch, out=y[at : at + len(block)])
        if not total:
            return None
        turned = _onto(blocks, _orthogonal(y), columns)
        q = _orthogonal(turned)
        for at, block in blocks():
            torch.mm(block, q, out=y[at : at + len(block)])
        y = _orthogonal(y)
        p, upper = torch.linalg.qr(_onto(blocks, y, columns).double())
        u, values, v = torch.linalg.svd(upper.T)
        squares = [square for square in values.square().tolist() if square > NOISE**2 * float(values[0]) ** 2]
        rank = choose(squares, total)
        left, right = cut(y.double() @ u, values, v @ p.T, rank)
        return Extracted(left, right, rank, squares, total)


def differ(pair: Pair) -> bool:
    """Whether two tensors of one shape differ as numbers. Raises AdapterError for NaN and infinity in either."""
    with _blocks(pair, 0) as blocks:
        return bool(sum(_square(block, pair.name) for _, block in blocks()))


Blocks = Callable[[], Iterator[tuple[int, "torch.Tensor"]]]


def _sketch(key: str, columns: int, width: int) -> torch.Tensor:
    """Uniform numbers that follow from the key."""
    import torch

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(columns, width, generator=torch.Generator().manual_seed(seed)).sub_(0.5)


def _square(block: torch.Tensor, name: str) -> float:
    import torch

    found = float(torch.linalg.vector_norm(block, dtype=torch.float64)) ** 2
    if not found < float("inf"):
        tip = "surgery verify --values says where; an adapter of such a difference would spoil the base"
        raise AdapterError("the difference of two weights is not finite", where=[name], help=tip)
    return found


def _orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """An orthonormal basis of the columns."""
    import torch

    return torch.linalg.qr(matrix)[0]


def _onto(blocks: Blocks, basis: torch.Tensor, columns: int) -> torch.Tensor:
    """Dᵀ times the basis."""
    import torch

    made = torch.zeros(columns, basis.shape[1])
    for at, block in blocks():
        made.addmm_(block.T, basis[at : at + len(block)])
    return made


@contextmanager
def _blocks(pair: Pair, held: int) -> Iterator[Blocks]:
    """The difference in blocks of rows, for as many passes as are asked for: (first row, block)."""
    with tempfile.TemporaryDirectory(prefix="surgery-") as folder, closing(workspace_of(DEFAULT_MEMORY)) as work:
        sides = [settle(side, folder, work) for side in (pair.base, pair.tuned)]
        if pair.base.size * 4 <= held:
            kept = list(_made(sides, work))
            yield lambda: iter(kept)
        elif any(leaf.file.remote for side in sides for leaf in stored(side)):
            path = os.path.join(folder, "difference")
            with open(path, "wb") as stream:
                sizes = [
                    (at, tuple(block.shape), stream.write(block.numpy().tobytes())) for at, block in _made(sides, work)
                ]
            yield lambda: _read(path, sizes)
        else:
            yield lambda: _made(sides, work)


def _made(sides: list[Tensor], work: Workspace) -> Iterator[tuple[int, torch.Tensor]]:
    rows, columns = shape_of(sides[0])
    tall = max(ROWS, BLOCK // columns // ROWS * ROWS)
    for at in range(0, rows, tall):
        start, stop = at * columns, min(at + tall, rows) * columns
        base, tuned = (_values(side, start, stop, f"side {i}", work) for i, side in enumerate(sides))
        yield at, (tuned - base).float().view(-1, columns)


def _values(side: Tensor, start: int, stop: int, use: str, work: Workspace) -> torch.Tensor:
    """Elements of one of the two, in float32, or as they are in F64."""
    import torch

    raw = work.buffer(use, (stop - start) * side.dtype.bits // 8)
    work.fill(side, start, stop, raw)
    values = torch.frombuffer(raw, dtype=torch_dtype(side.dtype))
    return values if side.dtype == F64 else values.float()


def _read(path: str, sizes: list[tuple[int, tuple[int, ...], int]]) -> Iterator[tuple[int, torch.Tensor]]:
    """The blocks that lie in a file: what came from the Hub comes once."""
    import torch

    with open(path, "rb") as stream:
        for at, shape, nbytes in sizes:
            yield at, torch.frombuffer(bytearray(stream.read(nbytes)), dtype=torch.float32).view(shape)


def shape_of(tensor: Tensor) -> tuple[int, int]:
    """The tensor as a matrix: its first axis, and all others."""
    rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
    return rows, tensor.size // rows if rows else 0
