"""Tables of what codes mean."""

from __future__ import annotations

# 4-bit floats of 2 exponent bits and 1 of mantissa (OCP Microscaling Formats, E2M1); codes from 8 on are negative.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_CODES = (*E2M1, *(-value for value in E2M1))

# The numbers of NF4's codes (bitsandbytes), ascending: quantiles of a normal distribution, as float32 has them.
NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

# Those of FP4's codes (bitsandbytes), which are in no order; 8 is zero again, and those after it are negative.
_TWELFTHS = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
FP4 = (*(number / 12 for number in _TWELFTHS), *(-number / 12 for number in _TWELFTHS))
