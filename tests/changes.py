"""Of each kind of change that a sum can do to its base: one for a base of any shape, and what it comes to, in float64.

A kind that is registered needs a row of `MADE`: the laws that hold of all kinds are tested on it then.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st

from surgery.lazy.change import Change
from surgery.lazy.circulant import Circulant
from surgery.lazy.dense import Dense
from surgery.lazy.gain import Gain
from surgery.lazy.hadamard import Hadamard
from surgery.lazy.kron import Kron
from surgery.lazy.low_rank import LowRank
from surgery.lazy.scatter import Scatter
from surgery.lazy.tensor import Stored
from surgery.lazy.turned import Turned
from surgery.lazy.waves import Waves

SIZE = 500_000  # elements of each pool
Pools = dict[str, tuple[Stored, torch.Tensor]]  # by dtype: numbers in a file, and the same here
Made = tuple[Change, torch.Tensor]
Window = Callable[[torch.Tensor], torch.Tensor]
BELOW = (1, 3, 7, 64, 97, 1009)  # of whole numbers: what they are below


def pooled(size: int = SIZE) -> dict[str, torch.Tensor]:
    """Normal random numbers of each dtype that is computed, some that are not near zero, and whole numbers below some
    others.
    """
    values = torch.randn(size, generator=torch.Generator().manual_seed(3))
    kinds = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
    made = {name: values.to(kind, copy=True) for name, kind in kinds.items()} | {"positive": values.abs() + 0.5}
    for name, kind in {"I32": torch.int32, "I64": torch.int64, "F32": torch.float32}.items():
        made |= {f"{name} {n}": (torch.arange(size) * 7919 % 999_983 % n).to(kind) for n in BELOW}
    return made


def leaf(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...], pool: str = "") -> tuple[Stored, torch.Tensor]:
    """A stored tensor of `shape`, cut from a pool that is drawn, or from `pool`, and its values in float64."""
    stored, values = pools[pool or draw(st.sampled_from(["F32", "BF16", "F16", "F64"]))]
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
    (magnitude, m), (norms, n) = leaf(draw, pools, one), leaf(draw, pools, one, "positive")
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


def window(draw: st.DrawFn, shape: tuple[int, ...], tall: int, wide: int) -> tuple[dict[str, Any], Window]:
    """A part of a matrix of at least (tall, wide) for a base of any shape: a cut's arguments, and that part of its
    value.
    """
    rows, columns = math.prod(shape[:-1]), shape[-1]
    row, column = draw(st.integers(0, tall - rows)), draw(st.integers(0, wide - columns))
    place = {"rows": shape[:-1], "columns": columns, "row": row, "column": column}
    return place, lambda whole: whole[row : row + rows, column : column + columns].reshape(shape)


def at_least(draw: st.DrawFn, size: int) -> tuple[int, int]:
    """Two numbers whose product is not less, nor much more."""
    one = draw(st.integers(1, min(size, 40)))
    return (one, -(-size // one)) if draw(st.booleans()) else (-(-size // one), one)


def kron(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    (a, b), (c, d) = at_least(draw, math.prod(shape[:-1])), at_least(draw, shape[-1])
    (left, x), (right, y) = leaf(draw, pools, (a, c)), leaf(draw, pools, (b, d))
    place, part = window(draw, shape, a * b, c * d)
    return Kron(left, right, 0.7, **place), 0.7 * part(torch.kron(x, y))


def circulant(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    size = draw(st.integers(1, 9))
    tall, wide = -(-math.prod(shape[:-1]) // size), -(-shape[-1] // size)
    kernel, k = leaf(draw, pools, (tall, wide, size))
    place, part = window(draw, shape, tall * size, wide * size)
    turn = (torch.arange(size) - torch.arange(size)[:, None]) % size
    return Circulant(kernel, -2.3, **place), -2.3 * part(
        k[:, :, turn].permute(0, 2, 1, 3).reshape(tall * size, wide * size)
    )


def at_places(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> tuple[tuple[Any, ...], torch.Tensor, Window]:
    """What a delta at places is made of, the numbers in a matrix of float64, and how to cut that."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    tall, wide = rows + draw(st.integers(0, 3)), columns + draw(st.integers(0, 3))
    flat, count = draw(st.booleans()), draw(st.integers(1, 300))
    below = max(m for m in BELOW if m <= (tall * wide if flat else min(tall, wide)))
    kind = draw(st.sampled_from(["I32", "I64", "F32"]))
    places, p = leaf(draw, pools, (count,) if flat else (2, count), f"{kind} {below}")
    values, v = leaf(draw, pools, (count,))
    p = p.long()
    where = (p // wide, p % wide) if flat else (p[0], p[1])
    whole = torch.zeros(tall, wide).double().index_put_(where, v, accumulate=True)
    turned = len(shape) > 1 and draw(st.booleans())
    place, part = window(draw, shape, tall, wide)
    if turned:  # the same part, of the matrix that lies in the other order
        places_of_base = (places, values, 0.7, wide, tall, True)
        whole = torch.zeros(wide, tall).double()
        where = (p // tall, p % tall) if flat else (p[0], p[1])
        return (places_of_base, place), whole.index_put_(where, v, accumulate=True), lambda made: part(made.T)
    return ((places, values, 0.7, tall, wide, False), place), whole, part


def scatter(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    (said, place), whole, part = at_places(draw, pools, shape)
    return Scatter(*said, **place), 0.7 * part(whole)


def waves(draw: st.DrawFn, pools: Pools, shape: tuple[int, ...]) -> Made:
    (said, place), whole, part = at_places(draw, pools, shape)
    return Waves(*said, **place), 0.7 * part(torch.fft.ifft(torch.fft.ifft(whole, dim=1), dim=0).real)


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
    Kron: kron,
    Circulant: circulant,
    Scatter: scatter,
    Waves: waves,
    Turned: turned,
}
