"""Rows made of the same rows of others: whatever is asked of them, they are those of the whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from movement import moved_once
from safetensors.torch import save_file

import surgery
from surgery.evaluation.arithmetic import exact
from surgery.evaluation.evaluate import blocks, load, settle, workspace_of
from surgery.lazy.dtypes import BF16, F32
from surgery.lazy.function import Function
from surgery.lazy.rowwise import mapped, measured, rowwise
from surgery.lazy.tensor import Rowwise, Shape, Tensor, Zeros, concat, in_dtype, narrow, permute, reshape

ROWS, COLUMNS = 150, 37
Made = Callable[[Tensor, Tensor], Tensor]


def softmax(rows: torch.Tensor) -> torch.Tensor:
    return rows.softmax(-1)[:, :20]


def linear(a: Tensor, b: Tensor) -> Rowwise:
    numbers = {"weight@0": 0.3, "weight@1": 0.9, "many": 2, "normalize": 1.0, "compute": "float32"}
    return rowwise(F32, "linear", [a, b], numbers=numbers)


def della(a: Tensor, b: Tensor) -> Tensor:
    """Of whole rows, with draws by place, and a factor of the whole."""
    each = {"weight@0": 0.7, "density@0": 0.5, "epsilon@0": 0.2}
    rest = {"many": 1, "lambda": 1.0, "normalize": 0.0, "rescale": 1.0, "compute": "float32", "seed": 3, "name": "w"}
    facts = measured(1, "della", [a, b], {**each, **rest})
    return rowwise(F32, "della", [a, b], facts=facts, numbers={**each, **rest})


def ties(a: Tensor, b: Tensor) -> Tensor:
    """Of single elements, with a threshold of the whole."""
    numbers = {
        "weight@0": 0.7, "density@0": 0.31, "many": 1, "lambda": 1.0, "normalize": 1.0, "rescale": 0.0,
        "compute": "float32",
    }  # fmt: skip
    return rowwise(F32, "ties", [a, b], facts=measured(3, "ties", [a, b], numbers), numbers=numbers)


def mapping(a: Tensor, b: Tensor) -> Tensor:
    return mapped(Function("softmax", "0", softmax), a, F32, 20)


KINDS: list[Made] = [linear, ties, della, mapping]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Tensor]:
    folder, generator = tmp_path_factory.mktemp("two"), torch.Generator().manual_seed(1)
    values = {n: torch.randn(ROWS, COLUMNS, generator=generator).mul(8).round().div(8) for n in "ab"}  # many are equal
    save_file(values, folder / "model.safetensors")
    return [surgery.open_checkpoint(folder)[n] for n in "ab"]


@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_elements_in_any_blocks_are_those_of_the_whole(made: Made, two: list[Tensor], data: st.DataObject) -> None:
    tensor = made(*two)
    whole = load(tensor).flatten()
    cuts = sorted({0, tensor.size, *data.draw(st.lists(st.integers(0, tensor.size), max_size=6))})
    work = workspace_of(data.draw(st.sampled_from([1 << 12, 1 << 16, 96_000_000])))
    with exact(), TemporaryDirectory() as folder:
        settled = settle(tensor, folder, work)
        for start, stop in pairwise(cuts):
            for at, raw in blocks(settled, start, stop, work):
                found = torch.frombuffer(bytearray(raw), dtype=torch.float32)
                assert torch.equal(found, whole[start + at // 4 :][: len(found)])
    work.close()


@pytest.mark.parametrize("made", KINDS, ids=lambda made: made.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_moved_is_the_whole_moved(made: Made, two: list[Tensor], data: st.DataObject) -> None:
    def leaf(shape: Shape) -> tuple[Tensor, torch.Tensor]:
        size = torch.Size(shape).numel()
        if size > made(*two).size:
            return Zeros(F32, shape), torch.zeros(shape)
        taken = narrow(reshape(made(*two), (made(*two).size,)), 0, 0, size)
        return reshape(taken, shape), load(made(*two)).flatten()[:size].view(shape)

    lazy, real = made(*two), load(made(*two))
    for _ in range(data.draw(st.integers(1, 3))):
        lazy, real = moved_once(data.draw, lazy, real, leaf)
    assert torch.equal(load(lazy), real)


def test_it_is_rounded_once_to_its_dtype(two: list[Tensor]) -> None:
    """And what comes after it computes with what it would have been as a file."""
    wide = linear(*two)
    rounded = replace(wide, dtype=BF16)
    assert torch.equal(load(rounded), load(wide).bfloat16())
    assert torch.equal(load(in_dtype(rounded, F32)), load(wide).bfloat16().float())


def test_split_and_joined_again_it_is_the_same(two: list[Tensor]) -> None:
    tensor = ties(*two)
    parts = [narrow(tensor, 0, at, 50) for at in (0, 50, 100)]
    assert torch.equal(load(concat(parts, 0)), load(tensor))
    assert torch.equal(load(permute(tensor, (1, 0))), load(tensor).T)


def test_two_functions_of_one_name_are_told_apart(two: list[Tensor]) -> None:
    one, other = (mapped(Function("f", digest, softmax), two[0], F32, 20) for digest in "ab")
    assert one != other
    assert "0x" not in repr(one)
