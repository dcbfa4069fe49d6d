"""What a sum's base was that was turned: the result, turned back by blocks that the record keeps."""

from __future__ import annotations

from collections.abc import Callable

from ..lazy.dtypes import F32, F64, Dtype
from ..lazy.gain import Gain
from ..lazy.tensor import Before, Sum, Tensor, made
from ..lazy.turned import Turned


def turned_back(total: Sum, under: Tensor, dtype: Dtype, settled: Callable[[Tensor], Tensor]) -> Before | None:
    """What the base of `total` most likely was, where `under` is what it has become; None where more was done to it
    than to turn it, and to multiply its rows.
    """
    match total.deltas, total.gain:
        case (Turned(base, blocks, scale),), None | Gain(columns=False) as gain if base == total.base:
            back = settled(made(blocks.shape, "turned back", [blocks], scale=scale))
            turn = Turned(under, back, -1.0)
            if gain is None:
                return Before(dtype, under, (turn,))
            return Before(dtype, Before(F64 if dtype == F64 else F32, under, (turn,)), (), gain.over(settled))
    return None
