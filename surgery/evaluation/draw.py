"""Random numbers by counter: element i of a tensor follows from the tensor's key and from i, on every machine and in
any order.

SHAKE-128 of the key and a block's number gives a block of 32-bit words; a word's upper 24 bits give a number. What
is written is the float32 nearest to a product in float64, so no machine's order of operations can matter.
"""

from __future__ import annotations

from array import array
from hashlib import shake_128
from statistics import NormalDist

from ..lazy.tensor import Random

BLOCK = 4096  # elements
_BITS = 24


def draw(tensor: Random, start: int, stop: int, out: memoryview) -> None:
    """Fill `out` with elements [start, stop), as little-endian float32."""
    done = 0
    for block in range(start // BLOCK, -(-stop // BLOCK)):
        first, last = max(start - block * BLOCK, 0), min(stop - block * BLOCK, BLOCK)
        raw = shake_128(f"{tensor.key}\0{block}".encode()).digest(4 * last)
        words = memoryview(raw).cast("I")[first:last]
        data = memoryview(
            array("f", _normal(words, tensor.spread) if tensor.normal else _uniform(words, tensor.spread))
        ).cast("B")
        out[done : done + len(data)] = data
        done += len(data)


def _uniform(words: memoryview, spread: float) -> list[float]:
    step = spread * 2.0 ** (1 - _BITS)
    return [((word >> 8) - (1 << _BITS - 1)) * step for word in words]


def _normal(words: memoryview, deviation: float) -> list[float]:
    quantile = NormalDist(0.0, deviation).inv_cdf
    return [quantile(((word >> 8) + 0.5) / (1 << _BITS)) for word in words]
