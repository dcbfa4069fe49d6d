"""Random movement: a lazy tensor and a torch tensor, moved alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from hypothesis import strategies as st

from surgery.lazy.tensor import Shape, Tensor, concat, narrow, permute, reshape

Pair = tuple[Tensor, torch.Tensor]


def moved_once(draw: st.DrawFn, lazy: Tensor, real: torch.Tensor, leaf: Callable[[Shape], Pair]) -> Pair:
    """Both after one random movement; `leaf` makes what is joined to them."""
    axis = draw(st.integers(0, len(lazy.shape) - 1))
    size, before, after = lazy.shape[axis], lazy.shape[:axis], lazy.shape[axis + 1 :]
    match draw(st.sampled_from(["narrow", "permute", "concat", "split", "flatten"])):
        case "narrow":
            start = draw(st.integers(0, size - 1))
            length = draw(st.integers(1, size - start))
            return narrow(lazy, axis, start, length), real.narrow(axis, start, length)
        case "permute":
            axes = draw(st.permutations(range(len(lazy.shape))))
            return permute(lazy, axes), real.permute(*axes)
        case "concat":
            more, values = leaf((*before, draw(st.integers(1, 3)), *after))
            front = draw(st.booleans())
            lazies, reals = ([more, lazy], [values, real]) if front else ([lazy, more], [real, values])
            return concat(lazies, axis), torch.cat(reals, axis)
        case "split":
            factor = draw(st.sampled_from([f for f in range(1, size + 1) if size % f == 0]))
            shape = (*before, factor, size // factor, *after)
            return reshape(lazy, shape), real.reshape(shape)
    shape = (*before, math.prod(lazy.shape[axis:]))
    return reshape(lazy, shape), real.reshape(shape)
