"""Laws of lowering: the pieces of a tensor are its elements, whatever movement made it."""

from __future__ import annotations

import math
from itertools import product

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from movement import moved_once

from surgery.lazy.dtypes import F32
from surgery.lazy.runs import Piece, lower, window
from surgery.lazy.tensor import File, Stored, Tensor

FILE = File("x", 0, 0)


@st.composite
def moved(draw: st.DrawFn) -> tuple[Tensor, torch.Tensor, dict[Stored, torch.Tensor]]:
    """A tree of movement, the same as a torch tensor of element numbers, and the numbers of each leaf."""
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    values: dict[Stored, torch.Tensor] = {}

    def leaf(shape: tuple[int, ...]) -> tuple[Tensor, torch.Tensor]:
        begin = sum(v.numel() for v in values.values())
        stored = Stored(F32, shape, FILE, 4 * begin)
        values[stored] = torch.arange(begin, begin + math.prod(shape))
        return stored, values[stored].reshape(shape)

    lazy, real = leaf(shape)
    for _ in range(draw(st.integers(0, 6))):
        lazy, real = moved_once(draw, lazy, real, leaf)
    return lazy, real, values


def elements(pieces: list[Piece], size: int, values: dict[Stored, torch.Tensor]) -> list[int]:
    """What the pieces say the tensor is; every element must be said exactly once."""
    out: list[int | None] = [None] * size
    for piece in pieces:
        for index in product(*(range(d.count) for d in piece.dims)):
            to = piece.to + sum(i * d.to for i, d in zip(index, piece.dims, strict=True))
            at = piece.at + sum(i * d.at for i, d in zip(index, piece.dims, strict=True))
            assert out[to] is None
            out[to] = int(values[piece.leaf][at])
    assert None not in out
    return out


@settings(max_examples=1500, deadline=None)
@given(moved())
def test_pieces_are_the_elements(case: tuple[Tensor, torch.Tensor, dict[Stored, torch.Tensor]]) -> None:
    lazy, real, values = case
    assert lazy.shape == tuple(real.shape)
    assert elements(lower(lazy), lazy.size, values) == real.reshape(-1).tolist()


@settings(max_examples=800, deadline=None)
@given(moved(), st.data())
def test_windows_are_slices(case: tuple[Tensor, torch.Tensor, dict[Stored, torch.Tensor]], data: st.DataObject) -> None:
    lazy, real, values = case
    start = data.draw(st.integers(0, lazy.size - 1))
    stop = data.draw(st.integers(start + 1, lazy.size))
    pieces = window(lower(lazy), start, stop, lazy.size)
    assert elements(pieces, stop - start, values) == real.reshape(-1)[start:stop].tolist()


@settings(max_examples=500, deadline=None)
@given(moved())
def test_dims_nest(case: tuple[Tensor, torch.Tensor, dict[Stored, torch.Tensor]]) -> None:
    for piece in lower(case[0]):
        reach = 1
        for dim in reversed(piece.dims):
            assert dim.to >= reach
            reach += (dim.count - 1) * dim.to
