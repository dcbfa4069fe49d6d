"""Of each kind of change that a sum can do to its base: one for a base of any shape, and what it comes to, in float64.

A kind that is registered needs a row of `MADE`: the laws that hold of all kinds are tested on it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st

from surgery.lazy.change import Change
from surgery.lazy.dense import Dense
from surgery.lazy.gain import Gain
from surgery.lazy.hadamard import Hadamard
from surgery.lazy.low_rank import LowRank
from surgery.lazy.tensor import Stored
from surgery.lazy.turned import Turned

SIZE = 500_000  # elements of each pool
Pools = dict[str, tuple[Stored, torch.Tensor]]  # by dtype: numbers in a file, and the same here
Made = tuple[Change, torch.Tensor]


def leaf(
    draw: st.DrawFn, pools: Pools, shape: tuple[int, ...], *, positive: bool = False
) -> tuple[Stored, torch.Tensor]:
    """A stored tensor of `shape`, cut from a pool that is drawn, and its values in float64."""
    stored, values = pools["positive" if positive else draw(st.sampled_from(["F32", "BF16", "F16", "F64"]))]
    size = math.prod(shape)
    at = draw(st.integers(0, SIZE - size))
    cut = Stored(stored.dtype, shape, stored.file, stored.offset + at * stored.dtype.bits // 8)
    return cut, values[at : at + size].reshape(shape).double()


def low_rank(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    rank, scale = draw(st.sampled_from([1, 2, 7, 64, 300])), draw(st.sampled_from([1.0, 0.7, -2.3]))
    (left, b), (right, a) = leaf(draw, pools, (*shape[:-1], rank)), leaf(draw, pools, (rank, shape[-1]))
    return LowRank(left, right, scale), scale * (b @ a)


def dense(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    scale = draw(st.sampled_from([1.0, 0.7, -2.3]))
    value, values = leaf(draw, pools, shape)
    return Dense(value, scale), scale * values


def gain(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    columns = draw(st.booleans())
    one = shape[-1:] if columns else shape[:-1]
    (magnitude, m), (norms, n) = leaf(draw, pools, one), leaf(draw, pools, one, positive=True)
    if draw(st.booleans()):
        return Gain(norms, None, columns), n if columns else n[..., None]
    return Gain(magnitude, norms, columns), (m / n if columns else (m / n)[..., None])


def hadamard(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    made = [low_rank(draw, pools, shape) for _ in range(draw(st.integers(1, 2)))]
    base, values = leaf(draw, pools, shape) if draw(st.booleans()) else (None, torch.ones(()).double())
    scale = draw(st.sampled_from([1.0, 0.7, -2.3]))
    for _, one in made:
        values = values * one
    return Hadamard(tuple(one for one, _ in made), base, scale), scale * values  # type: ignore[arg-type]


def turned(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    edge = draw(st.sampled_from([n for n in range(1, min(shape[-1], 70) + 1) if shape[-1] % n == 0]))
    height, count = math.prod(shape[:-1]), shape[-1] // edge
    runs = draw(st.sampled_from([n for n in range(1, min(height, 70) + 1) if height % n == 0]))
    given = draw(st.sampled_from([1, count])) if runs * count * edge * edge < SIZE else 1
    (base, values), (blocks, b) = leaf(draw, pools, shape), leaf(draw, pools, (runs, given, edge, edge))
    scale = draw(st.sampled_from([1.0, 0.7, -2.3]))
    made = torch.einsum("arnk,ankj->arnj", values.view(runs, -1, count, edge), b.expand(runs, count, edge, edge))
    return Turned(base, blocks, scale), scale * made.reshape(shape)


MADE: dict[type[Change], Callable[[st.DrawFn, Pools, tuple[int, ...]], Made]] = {
    LowRank: low_rank,
    Dense: dense,
    Gain: gain,
    Hadamard: hadamard,
    Turned: turned,
}
