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
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AdapterError
from ..lazy.dtypes import F64
from ..lazy.tensor import Tensor, stored
from .arithmetic import exact, one_thread, torch_dtype
from .compare import identical
from .evaluate import settle, workspace_of
from .shortening import Choose, cut
from .tiles import ROWS, matrix
from .workspace import DEFAULT_MEMORY, Workspace

if TYPE_CHECKING:
    import torch

MORE = 8  # columns of the sketch beyond the ranks that are looked for
BLOCK = 1 << 19  # elements of a block, or 64 rows
SMALL = 1e-20  # below that sum, squares in float32 may have become zero
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


def all_extracted(
    pairs: Sequence[Pair], most: int, choose: Choose, held: int, workers: int
) -> Iterator[Extracted | None]:
    """What `extracted` gives for each of the pairs, in their order, by so many workers, each of which holds blocks of
    up to `held` bytes.
    """
    places = Places(held)
    with exact(), closing(places), ThreadPoolExecutor(workers) as crew:
        yield from crew.map(lambda pair: extracted(pair, most, choose, places.mine()), pairs)


def extracted(pair: Pair, most: int, choose: Choose, place: Place) -> Extracted | None:
    """The best approximation of the difference, of the rank that is chosen of up to `most`; None where the two are
    equal. Raises AdapterError for NaN and infinity in either, unless they are the same bits in both.
    """
    try:
        return _extracted(pair, most, choose, place)
    except AdapterError:
        if identical(pair.base, pair.tuned, place.work):
            return None
        raise


def _extracted(pair: Pair, most: int, choose: Choose, place: Place) -> Extracted | None:
    import torch

    one_thread()
    if not pair.base.size:
        return None
    with _blocks(pair, place) as blocks:
        rows, columns = shape_of(pair.base)
        width = min(most + MORE, rows, columns)
        sketch, total = _sketch(pair.key, columns, width), 0.0
        y = torch.empty(rows, width)
        for at, block in blocks():
            total += _square(block, pair.name)
            torch.mm(block, sketch, out=y[at : at + len(block)])
        if not total:
            return None
        q = _orthogonal(_onto(blocks, _orthogonal(y), columns))
        for at, block in blocks():
            torch.mm(block, q, out=y[at : at + len(block)])
        y = _orthogonal(y)
        p, upper = torch.linalg.qr(_onto(blocks, y, columns).double())
        u, values, v = torch.linalg.svd(upper.T)
        squares = [square for square in values.square().tolist() if square > NOISE**2 * float(values[0]) ** 2]
        rank = choose(squares, total)
        left, right = cut(y.double() @ u, values, v @ p.T, rank)
        return Extracted(left, right, rank, squares, total)


def joined(
    products: Sequence[Extracted | None], shape: Sequence[int], *, turned: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B as PEFT stores them: of one matrix, or of a stack of matrices of `shape`, (experts * rank, in) and (out,
    rank * experts), the expert fastest; zeros where one has less rank than another. `turned`: of the transposes.
    """
    import torch

    if not shape:
        (one,) = products
        assert one
        return (one.left.T, one.right.T) if turned else (one.right, one.left)
    rank = max(one.rank for one in products if one)
    a = torch.zeros(len(products), rank, shape[0] if turned else shape[1])
    b = torch.zeros(shape[1] if turned else shape[0], rank, len(products))
    for expert, one in enumerate(products):
        if one:
            a[expert, : one.rank] = one.left.T if turned else one.right
            b[:, : one.rank, expert] = one.right.T if turned else one.left
    return a.flatten(0, 1), b.flatten(1)


class Place:
    """What one worker has: open files and buffers, and room for the blocks of a difference of up to `held` bytes."""

    def __init__(self, held: int) -> None:
        self.work, self._held, self._room = workspace_of(DEFAULT_MEMORY), held, bytearray()

    def room(self, size: int) -> torch.Tensor | None:
        """Room for so many numbers, the same at each call; None where there is none."""
        import torch

        if size * 4 > self._held:
            return None
        if len(self._room) < size * 4:
            self._room = bytearray(0)  # before there is more
            self._room = bytearray(size * 4)
        return torch.frombuffer(self._room, dtype=torch.float32)[:size]


class Places:
    """A place for each thread that asks."""

    def __init__(self, held: int) -> None:
        self._held, self._local, self._all = held, threading.local(), list[Place]()

    def mine(self) -> Place:
        """That of the thread that asks."""
        if not hasattr(self._local, "place"):
            self._local.place = Place(self._held)
            self._all.append(self._local.place)
        place: Place = self._local.place
        return place

    def close(self) -> None:
        """Close the files of all."""
        for place in self._all:
            place.work.close()


def differ(pair: Pair) -> bool:
    """Whether two tensors of one shape differ as numbers. Raises AdapterError for NaN and infinity in either, unless
    they are the same bits in both.
    """
    place = Place(0)
    with exact(), closing(place.work):
        try:
            return bool(_length(pair, place))
        except AdapterError:
            if identical(pair.base, pair.tuned, place.work):
                return False
            raise


def _length(pair: Pair, place: Place) -> float:
    if not pair.base.size:
        return 0.0
    with _blocks(pair, place) as blocks:
        return sum(_square(block, pair.name) for _, block in blocks())


Blocks = Callable[[], Iterator[tuple[int, "torch.Tensor"]]]


def _sketch(key: str, columns: int, width: int) -> torch.Tensor:
    """Uniform numbers that follow from the key."""
    import torch

    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    return torch.rand(columns, width, generator=torch.Generator().manual_seed(seed)).sub_(0.5)


def _square(block: torch.Tensor, name: str) -> float:
    import torch

    found = float(torch.linalg.vector_norm(block, dim=1).double().square_().sum())  # in float64 it would be copied
    if not SMALL < found < float("inf"):
        found = float(torch.linalg.vector_norm(block, dim=1, dtype=torch.float64).square_().sum())
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
def _blocks(pair: Pair, place: Place) -> Iterator[Blocks]:
    """The difference in blocks of rows, for as many passes as are asked for: (first row, block). A block is valid
    until the next.
    """
    with tempfile.TemporaryDirectory(prefix="surgery-", ignore_cleanup_errors=True) as folder:
        sides = [settle(side, folder, place.work) for side in (pair.base, pair.tuned)]
        room = place.room(pair.base.size)
        if room is not None:
            kept = list(_made(sides, place.work, room))
            yield lambda: iter(kept)
        elif any(leaf.file.remote for side in sides for leaf in stored(side)):
            path, sizes = os.path.join(folder, "difference"), list[tuple[int, tuple[int, ...], int]]()
            with open(path, "wb") as stream:
                for at, block in _made(sides, place.work):
                    sizes.append((at, tuple(block.shape), stream.write(block.numpy().tobytes())))
            yield lambda: _read(path, sizes)
        else:
            yield lambda: _made(sides, place.work)


def _made(
    sides: Sequence[Tensor], work: Workspace, room: torch.Tensor | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """The blocks, one after another in `room`, or each in the place of the one before."""
    import torch

    rows, columns = shape_of(sides[0])
    tall = max(ROWS, BLOCK // columns // ROWS * ROWS)
    for at in range(0, rows, tall):
        start, stop = at * columns, min(at + tall, rows) * columns
        base, tuned = (_values(side, start, stop, f"side {i}", work) for i, side in enumerate(sides))
        block = room[start:stop] if room is not None else matrix(work, "block", (1, stop - start), torch.float32)[0]
        if F64 in (base_side.dtype for base_side in sides):
            block.copy_(tuned.double() - base.double())
        else:
            block.copy_(tuned).sub_(base)
        yield at, block.view(-1, columns)


def _values(side: Tensor, start: int, stop: int, use: str, work: Workspace) -> torch.Tensor:
    """Elements of one of the two, as they are."""
    import torch

    raw = work.buffer(use, (stop - start) * side.dtype.bits // 8)
    work.fill(side, start, stop, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(side.dtype))


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
