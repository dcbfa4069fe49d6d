"""Tables of what codes mean."""

from __future__ import annotations

# 4-bit floats of 2 exponent bits and 1 of mantissa (OCP Microscaling Formats, E2M1); codes from 8 on are negative.
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_CODES = (*E2M1, *(-value for value in E2M1))
