"""Laws of tensors that are made side by side: each byte of a shard once, each byte of the source read once."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.evaluation import read
from surgery.evaluation.evaluate import blocks, blocks_together, workspace_of
from surgery.lazy.dtypes import BF16, DTYPES
from surgery.lazy.tensor import File, Stored, Tensor, concat, narrow, permute, reshape, substitute
from surgery.planning.steps import Copy, Fill
from surgery.planning.together import ROW, Together, together

MEMORY = 8_000_000


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> File:
    path = tmp_path_factory.mktemp("together") / "x"
    path.write_bytes(os.urandom(4_000_000))
    return File(str(path), 4_000_000, path.stat().st_mtime_ns)


def fills(*tensors: Tensor) -> list[Fill]:
    """What fills a shard with the tensors, one after another."""
    ends = [sum(t.nbytes for t in tensors[:i]) for i in range(len(tensors))]
    return [Fill(t, 0, t.size, to) for t, to in zip(tensors, ends, strict=True)]


def written(part: Together, size: int) -> bytearray:
    """A file of `size` bytes after the part, made in the pieces that a crew makes of it."""
    out, work = bytearray(size), workspace_of(MEMORY)
    for piece in part.cut(300_000):
        each = [*piece.each()]
        for which, at, data in blocks_together(
            [(f.tensor, f.start, f.stop) for f in each], piece.stop - piece.start, work
        ):
            out[each[which].to + at : each[which].to + at + len(data)] = data
    work.close()
    return out


def alone(tensor: Tensor) -> bytes:
    """The bytes of a tensor evaluated by itself."""
    work = workspace_of(MEMORY)
    made = b"".join(bytes(data) for _, data in blocks(tensor, 0, tensor.size, work))
    work.close()
    return made


def cut(whole: Tensor, axis: int, sizes: list[int]) -> list[Tensor]:
    """Neighbours along an axis."""
    return [narrow(whole, axis, sum(sizes[:i]), size) for i, size in enumerate(sizes)]


def interleaved(whole: Tensor, parts: int) -> list[Tensor]:
    """Every so many columns, a tensor for each turn."""
    *rows, columns = whole.shape
    apart = reshape(whole, (*rows, columns // parts, parts))
    return [reshape(narrow(apart, len(rows) + 1, i, 1), (*rows, columns // parts)) for i in range(parts)]


def turned(tensor: Tensor) -> Tensor:
    """The last two axes exchanged."""
    axes = [*range(len(tensor.shape))]
    return permute(tensor, (*axes[:-2], axes[-1], axes[-2]))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_the_bytes_are_those_of_each_alone(noise: File, data: st.DataObject) -> None:
    """Columns of any widths, elements that take turns, turned or not, of every width of element, packed ones too."""
    draw = data.draw
    dtype = DTYPES[draw(st.sampled_from(["U8", "BF16", "F32", "F64", "F4"]))]
    shape = draw(st.sampled_from([(3, 40, 128), (300, 160), (64, 1200), (2, 2, 70, 48), (1000, 24)]))
    whole: Tensor = Stored(dtype, shape, noise, draw(st.integers(0, 9)))
    if draw(st.booleans()):
        tensors = (
            interleaved(whole, draw(st.sampled_from([2, 3, 4]))) if dtype.bits >= 8 and shape[-1] % 12 == 0 else []
        )
    else:
        tensors = cut(whole, len(shape) - 1, draw(st.sampled_from([[8, 16], [10, 2, 8], [4, 4, 12], [20, 4]])))
    if draw(st.booleans()) and dtype.bits >= 8:
        tensors = [turned(t) for t in tensors]
    parts = [*together(fills(*tensors))]
    size = sum(t.nbytes for t in tensors)
    for part in parts:
        assert isinstance(part, Together)
        out = written(part, size)
        for fill in part.fills:
            assert out[fill.to : fill.to + fill.tensor.nbytes] == alone(fill.tensor)
    assert sorted(f.to for p in parts for f in p.fills) == sorted(f.to for f in fills(*tensors))  # type: ignore[union-attr]


W = Stored(BF16, (1000, 1200), File("x", 0, 0), 0)


def test_what_reaches_over_the_same_bytes_is_together() -> None:
    other = Stored(BF16, (1000, 1200), File("x", 0, 0), W.nbytes)
    mine, theirs = cut(W, 1, [400, 800]), interleaved(other, 2)
    first, second = together(fills(mine[0], theirs[0], mine[1], theirs[1]))
    assert isinstance(first, Together) and isinstance(second, Together)
    assert [f.tensor for f in first.fills] == mine and [f.tensor for f in second.fills] == theirs
    assert (first.rows, first.row, second.row) == (1000, 2400, 2400)


def test_experts_of_one_tensor_are_apart() -> None:
    stack = Stored(BF16, (3, 40, 60), File("x", 0, 0), 0)
    experts = [reshape(narrow(stack, 0, i, 1), (40, 60)) for i in range(3)]
    pairs = [turned(t) for e in experts for t in interleaved(e, 2)]
    found = [*together(fills(*pairs))]
    assert [[f.tensor for f in p.fills] for p in found if isinstance(p, Together)] == [
        pairs[:2],
        pairs[2:4],
        pairs[4:],
    ]


def test_what_shares_no_rows_is_made_alone() -> None:
    """A part turned and a part not, of which rows are not those of the other."""
    left, right = cut(W, 1, [600, 600])
    found = [*together(fills(turned(left), right))]
    assert [len(p.fills) for p in found if isinstance(p, Together)] == [1, 1]
    wide = reshape(narrow(Stored(BF16, (2 * ROW, 2), File("x", 0, 0), 0), 1, 0, 1), (2 * ROW,))
    assert [*together(fills(wide))] == fills(wide)


def test_all_else_stays_as_it_is() -> None:
    other = Stored(BF16, (1000, 8), File("y", 0, 0), 0)
    both = concat([narrow(W, 1, 0, 7), other], 1)
    parts = [Copy(W.file, 0, 0, 10), *fills(both)]
    assert [*together(parts)] == parts


@pytest.mark.parametrize(
    "tensors",
    [
        cut(W, 1, [400, 400, 400]),
        cut(W, 1, [1000, 100, 100]),
        interleaved(W, 2),
        [turned(t) for t in interleaved(W, 2)],
        [turned(t) for t in cut(W, 1, [600, 600])],
    ],
    ids=["columns", "widths", "interleaved", "turned", "halves"],
)
def test_each_byte_is_read_once(tensors: list[Tensor], noise: File, monkeypatch: pytest.MonkeyPatch) -> None:
    here = Stored(BF16, W.shape, noise, 0)
    tensors = [substitute(t, W, here) for t in tensors]
    (part,) = together(fills(*tensors))
    assert isinstance(part, Together)
    asked: list[int] = []
    real = os.preadv

    def counted(fd: int, buffers: list[memoryview], at: int) -> int:
        asked.append(len(buffers[0]))
        return real(fd, buffers, at)

    monkeypatch.setattr(read.os, "preadv", counted)
    work = workspace_of(MEMORY * 2)
    for _ in blocks_together([(f.tensor, f.start, f.stop) for f in part.fills], part.rows, work):
        pass
    work.close()
    assert sum(asked) <= here.nbytes * 1.01 and len(asked) <= 20
    assert written(part, here.nbytes) == b"".join(alone(t) for t in tensors)
