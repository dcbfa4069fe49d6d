"""Numbers in [0, 1) that follow from a key and their place alone, by integers that are the same on every machine."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # of splitmix64


def _signed(word: int) -> int:
    word %= 1 << 64
    return word - (1 << 64) if word >> 63 else word


def uniform(key: str, at: int, count: int) -> torch.Tensor:
    """Numbers [at, at + count) of the key: 24 bits each, in float32."""
    import torch

    start = int.from_bytes(sha256(key.encode()).digest()[:8], "little")
    words = torch.arange(at, at + count, dtype=torch.int64).add_(1).mul_(_signed(_STEP)).add_(_signed(start))
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        words = (words ^ (words >> shift & (1 << 64 - shift) - 1)).mul_(_signed(factor))
    words = words ^ (words >> 31 & (1 << 33) - 1)
    return (words >> 40 & (1 << 24) - 1).to(torch.float32).mul_(2.0**-24)
