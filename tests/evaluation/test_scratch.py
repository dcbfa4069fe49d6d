"""Factors that are themselves arithmetic: a sum over them is the sum over their values, and so is what undoes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgery
from surgery.evaluation.evaluate import load
from surgery.evaluation.scratch import scratch_of
from surgery.lazy.dense import Dense
from surgery.lazy.dtypes import F32
from surgery.lazy.gain import Gain
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import Norms, Sum, Tensor, Zeros, add, concat, narrow, permute, reshape, substitute

ROWS, COLUMNS, RANK = 200, 130, 6
SHAPES = {"w": (ROWS, COLUMNS), "b": (ROWS, RANK), "a": (RANK, COLUMNS), "m": (ROWS,), "n": (ROWS,)}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("stored")
    generator = torch.Generator().manual_seed(3)
    save_file(
        {name: 1 + torch.rand(shape, generator=generator) for name, shape in SHAPES.items()},
        folder / "model.safetensors",
    )
    return dict(surgery.open_checkpoint(folder).tensors)


def scaled(tensor: Tensor) -> Tensor:
    """A sum."""
    matrix = reshape(tensor, (tensor.shape[0], tensor.size // tensor.shape[0]))
    return reshape(add(Zeros(F32, matrix.shape), [Dense(matrix, 0.5)]), tensor.shape)


def joined(tensor: Tensor) -> Tensor:
    """Sums, one after another."""
    half = tensor.shape[0] // 2
    return concat([scaled(narrow(tensor, 0, 0, half)), scaled(narrow(tensor, 0, half, tensor.shape[0] - half))], 0)


def within(tensor: Tensor) -> Tensor:
    """A sum over a sum."""
    return scaled(joined(tensor))


def turned(tensor: Tensor) -> Tensor:
    """A sum of which the columns become rows, and back."""
    axes = tuple(reversed(range(len(tensor.shape))))
    return permute(scaled(permute(tensor, axes)), axes)


@pytest.mark.parametrize("made", [scaled, joined, within, turned], ids=lambda made: made.__name__)
@pytest.mark.parametrize("which", ["left", "right", "dense", "magnitude", "norms"])
def test_a_factor_that_is_computed(
    which: str, made: Callable[[Tensor], Tensor], stored: dict[str, Tensor], tmp_path: Path
) -> None:
    """The sum is bit for bit that over the factor as it is once it lies in a file."""

    def total(make: Callable[[str, Tensor], Tensor]) -> Tensor:
        left, right = make("left", stored["b"]), make("right", stored["a"])
        gain = Gain(make("magnitude", stored["m"]), make("norms", stored["n"]))
        return add(stored["w"], [LowRank(left, right, 0.1), Dense(make("dense", stored["w"]), 0.2)], gain=gain)

    def in_file(name: str, tensor: Tensor) -> Tensor:
        if name != which:
            return tensor
        save_file({"x": load(made(tensor)).contiguous()}, tmp_path / "model.safetensors")
        return surgery.open_checkpoint(tmp_path).tensors["x"]

    lazy = total(lambda name, tensor: made(tensor) if name == which else tensor)
    assert scratch_of(lazy) is not None
    assert load(lazy).equal(load(total(in_file)))


def test_norms_of_what_has_norms_in_it_are_settled(stored: dict[str, Tensor]) -> None:
    """DoRA on DoRA, in one run: what is inside of norms is replaced, too."""
    once = add(stored["w"], [LowRank(stored["b"], stored["a"], 0.1)], gain=Gain(stored["m"], stored["n"]))
    assert isinstance(once, Sum)
    inner = Norms(once)
    twice = Norms(add(once, [], gain=Gain(stored["m"], inner)))
    assert scratch_of(twice) == inner
    assert scratch_of(substitute(twice, inner, stored["n"])) == substitute(twice, inner, stored["n"])
