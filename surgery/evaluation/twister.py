"""torch's generator on the CPU, the Mersenne Twister, drawn from anew: the same numbers on every machine.

A seed is taken modulo 2^32. A float32 in [0, 1) is the low 24 bits of one draw; `uniform_(low, high)` is that times the
width, plus `low`, rounded once; `normal_` of 16 numbers or more makes each 16 of 16 such (Box and Muller).
Source: torch 2.13, ATen/core/MT19937RNGEngine.h, DistributionsHelper.h, native/cpu/DistributionTemplates.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_CHUNK = 1 << 20  # draws that are skipped at once
_BITS = 24
BLOCK = 16  # numbers that `normal_` makes together


def uniform(seed: int, skip: int, count: int, low: float, high: float) -> np.ndarray[Any, Any]:
    """Float64 of `count` numbers of `uniform_(low, high)` of float32, after `skip` others: exact but for the one
    rounding.
    """
    import numpy as np

    first, last = float(np.float32(low)), float(np.float32(high))
    width = float(np.float32(last) - np.float32(first))
    return _floats(seed, skip, count) * width + first


def normal(seed: int, deviation: float) -> np.ndarray[Any, Any]:
    """The first 16 numbers of `normal_(0, deviation)` of 32 numbers or more, but for the last bits."""
    import numpy as np

    half = BLOCK // 2
    values = _floats(seed, 0, BLOCK)
    radius, angle = np.sqrt(-2 * np.log1p(-values[:half])), 2 * np.pi * values[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]) * deviation


def _floats(seed: int, skip: int, count: int) -> np.ndarray[Any, Any]:
    """Float64 of numbers in [0, 1)."""
    import numpy as np

    engine = np.random.MT19937()
    engine._legacy_seeding(seed % (1 << 32))
    while skip:
        engine.random_raw(step := min(skip, _CHUNK), output=False)
        skip -= step
    return (engine.random_raw(count) & ((1 << _BITS) - 1)) * 2.0**-_BITS
