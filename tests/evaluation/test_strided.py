"""Laws of copies by strides, and of how much is read for them."""

from __future__ import annotations

import os
from itertools import product
from math import prod
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.evaluation import read
from surgery.evaluation.read import SPAN, Reader
from surgery.evaluation.strided import LONG, extent, place
from surgery.lazy.dtypes import DTYPES
from surgery.lazy.runs import Dim, Piece, to_bytes, window
from surgery.lazy.tensor import File, Stored, Tensor, narrow, permute, reshape


@st.composite
def strided(draw: st.DrawFn) -> tuple[tuple[Dim, ...], int]:
    """Dims in bytes, as lowering gives them, and how many bytes of the result they reach over."""
    run = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 18, 100, LONG - 1, LONG, 1500]))
    counts = draw(
        st.lists(st.integers(2, 9) | st.sampled_from([130, 300]), max_size=3).filter(lambda c: prod(c) * run < 60_000)
    )
    to, at = [], [0] * len(counts)
    reach = run
    for count in reversed(counts):
        to.insert(0, reach + draw(st.sampled_from([0, 0, 1, run])))
        reach = (count - 1) * to[0] + reach
    inner = run
    for i in draw(st.permutations(range(len(counts)))):
        at[i] = inner + draw(st.sampled_from([0, 0, 1, run]))
        inner = (counts[i] - 1) * at[i] + inner
    outer = tuple(Dim(count, a, b) for count, a, b in zip(counts, at, to, strict=True))
    return (*outer, Dim(run, 1, 1)) if run > 1 else outer, reach


def picked(source: bytes, dims: tuple[Dim, ...], size: int) -> dict[int, int]:
    """What the dims say: the byte at each place."""
    found = {}
    for index in product(*(range(d.count) for d in dims)):
        found[sum(i * d.to for i, d in zip(index, dims, strict=True))] = source[
            sum(i * d.at for i, d in zip(index, dims, strict=True))
        ]
    assert max(found) < size
    return found


@settings(max_examples=150, deadline=None)
@given(strided(), st.integers(0, 5), st.integers(0, 5), st.sampled_from([0, 1, 8]))
def test_bytes_go_to_their_places(case: tuple[tuple[Dim, ...], int], shift: int, to: int, slack: int) -> None:
    """Those that the dims name, wherever the buffers begin, and no other."""
    dims, reach = case
    noise = os.urandom(shift + extent(dims) + slack)
    out = bytearray(to + reach + 3)
    place(memoryview(noise), shift, dims, memoryview(out), to)
    wanted = picked(noise[shift:], dims, reach)
    assert all(out[to + b] == wanted.get(b, 0) for b in range(reach))
    assert out[:to] == bytes(to) and out[to + reach :] == bytes(3)


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> File:
    path = tmp_path_factory.mktemp("noise") / "x"
    path.write_bytes(os.urandom(3_000_000))
    status = path.stat()
    return File(str(path), status.st_size, status.st_mtime_ns)


def content(file: File) -> bytes:
    return Path(file.path).read_bytes()


def gathered(tensor: Tensor, start: int, stop: int) -> bytes:
    from surgery.lazy.runs import lower

    out, reader = bytearray((stop - start) * tensor.dtype.bits // 8), Reader()
    pieces: list[Piece] = window(lower(tensor), start, stop, tensor.size)
    reader.gather([to_bytes(piece) for piece in pieces], memoryview(out))
    reader.close()
    return bytes(out)


SHAPES = [
    *((700, 2000), (5, 300, 900), (2000, 640), (90_000, 12), (12, 90_000), (40, 30, 1200), (512, 2048), (4, 300_000)),
    *((300, 1100), (12, 25_000), (25_000, 12)),
]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_movement_of_any_width(noise: File, data: st.DataObject) -> None:
    """Larger than a span, of every width of element, packed ones too, from any byte of a file."""
    import torch

    dtype = DTYPES[data.draw(st.sampled_from(["U8", "BF16", "F32", "F64", "F4"]))]
    shape = data.draw(st.sampled_from([s for s in SHAPES if prod(s) * dtype.bits // 8 < 2_900_000]))
    offset, item = data.draw(st.integers(0, 9)), max(1, dtype.bits // 8)
    lazy: Tensor = Stored(dtype, shape, noise, offset)
    axis = data.draw(st.integers(0, len(shape) - 1))
    per = 2 if dtype.bits < 8 else 1  # elements that share a byte stay together
    units = (*shape[:-1], shape[-1] // per, item)
    real = torch.frombuffer(bytearray(content(noise)), dtype=torch.uint8)[offset : offset + prod(units)].reshape(units)
    start, length = shape[axis] // 5 // 2 * 2, shape[axis] // 2 // 2 * 2
    lazy = narrow(lazy, axis, start, length)
    last = per if axis == len(shape) - 1 else 1
    real = real.narrow(axis, start // last, length // last)
    apart = (*lazy.shape[:-1], lazy.shape[-1] // per, per)
    axes = data.draw(st.permutations(range(len(shape))))
    lazy = permute(reshape(lazy, apart), (*axes, len(shape)))
    real = real.permute(*axes, len(shape))
    first = data.draw(st.integers(0, lazy.size // per - 1)) * per
    stop = data.draw(st.integers(first // per + 1, lazy.size // per)) * per
    assert (
        gathered(lazy, first, stop)
        == real.contiguous().numpy().tobytes()[first * dtype.bits // 8 : stop * dtype.bits // 8]
    )


@pytest.mark.parametrize(("columns", "calls"), [(1600, 20), (16_000, 100)])
def test_runs_of_some_kilobytes_are_not_read_one_by_one(
    columns: int, calls: int, noise: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless they are long; and then no more is read than is needed."""
    asked: list[int] = []
    real = os.preadv

    def counted(fd: int, buffers: list[memoryview], at: int) -> int:
        asked.append(len(buffers[0]))
        return real(fd, buffers, at)

    monkeypatch.setattr(read.os, "preadv", counted)
    rows = 1_400_000 // columns // 3
    middle = narrow(Stored(DTYPES["BF16"], (rows, 3 * columns), noise, 0), 1, columns, columns)
    part = gathered(middle, 0, middle.size)
    assert len(asked) <= calls and max(asked) <= max(SPAN, 2 * columns)
    assert sum(asked) <= (4 if columns == 1600 else 1) * len(part)
    whole = content(noise)
    assert part == b"".join(whole[(3 * r + 1) * 2 * columns : (3 * r + 2) * 2 * columns] for r in range(rows))
