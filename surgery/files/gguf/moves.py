"""What a conversion to GGUF did to a tensor, undone: movement of rows, and one that is subtracted from norms.

Blocks lie along rows, so that what moves rows moves their codes.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ...errors import FormatError
from ...lazy.dense import Dense
from ...lazy.dtypes import F32
from ...lazy.tensor import Constant, Decoded, Tensor, add, permute, reshape


@dataclass(frozen=True, slots=True)
class Heads:
    """How many heads of queries there are, and of keys and values."""

    queries: int
    keys: int


Move = Callable[[Tensor, Heads], Tensor]


def by_rows(tensor: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """The tensor after a movement of all axes but the last; of blocks, their codes are moved."""
    if not isinstance(tensor, Decoded) or len(tensor.shape) < 2:
        return move(tensor)
    codes = move(tensor.codes)
    return replace(tensor, codes=codes, shape=(*codes.shape[:-1], tensor.shape[-1]))


def _check(rows: int, parts: int) -> None:
    if parts < 1 or rows % parts:
        raise FormatError(f"{rows} rows are no whole number of {parts} parts")


def unrotated(tensor: Tensor, heads: int) -> Tensor:
    """Rows of heads whose halves were laced into each other, as Meta's rotation has them, in halves again."""
    rows, rest = tensor.shape[0], tensor.shape[1:]
    _check(rows, 2 * heads)
    laced = reshape(tensor, (heads, rows // heads // 2, 2, *rest))
    return reshape(permute(laced, (0, 2, 1, *range(3, 3 + len(rest)))), tensor.shape)


def queries(tensor: Tensor, heads: Heads) -> Tensor:
    return by_rows(tensor, lambda one: unrotated(one, heads.queries))


def keys(tensor: Tensor, heads: Heads) -> Tensor:
    return by_rows(tensor, lambda one: unrotated(one, heads.keys))


def grouped(tensor: Tensor, heads: int) -> Tensor:
    """Rows of all queries, keys and values, so that those of a head lie together."""
    rows, rest = tensor.shape[0], tensor.shape[1:]
    _check(rows, 3 * heads)
    split = reshape(tensor, (3, heads, rows // 3 // heads, *rest))
    return reshape(permute(split, (1, 0, 2, *range(3, 3 + len(rest)))), tensor.shape)


def tripled(tensor: Tensor, heads: Heads) -> Tensor:
    return by_rows(tensor, lambda one: grouped(one, heads.queries))


def transposed(tensor: Tensor, heads: Heads) -> Tensor:
    """A matrix as Conv1D has it; a bias as it is."""
    return permute(tensor, (1, 0)) if len(tensor.shape) == 2 else tensor


def widened(tensor: Tensor, heads: Heads) -> Tensor:
    """A row as a matrix of one row."""
    return reshape(tensor, (1, tensor.shape[0])) if len(tensor.shape) == 1 else tensor


def minus_one(tensor: Tensor, heads: Heads) -> Tensor:
    """A norm's weight that is counted from one; a bias is not changed: `moved` asks for weights alone."""
    ones = Constant(F32, tensor.shape, struct.pack("<f", 1.0) * tensor.size)
    return add(tensor, [Dense(ones, -1.0)])


HEADS_Q_K: Mapping[str, Move] = {"blk.attn_q": queries, "blk.attn_k": keys}
ONLY_WEIGHTS = frozenset({minus_one, transposed, widened})
