"""The types of tensors in GGUF by their numbers: plain ones, and blocks of codes along a row.

Source: ggml `ggml_type` and gguf 0.19 `GGML_QUANT_SIZES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...lazy.dtypes import DTYPES, Dtype


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of tensors. `elements` of a row lie in `nbytes` bytes: a number, or a block of codes with its scales.

    `dtype` is what plain numbers are, None of blocks.
    """

    name: str
    elements: int
    nbytes: int
    dtype: Dtype | None = None


PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}
BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    39: ("MXFP4", 32, 17),
}
KINDS: Mapping[int, Kind] = {
    **{number: Kind(name, 1, DTYPES[name].bits // 8, DTYPES[name]) for number, name in PLAIN.items()},
    **{number: Kind(*row) for number, row in BLOCKS.items()},
}

# What is refused by its name: codes that stand for points of a lattice or three values, or that are of a run alone.
OTHERS = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    29: "IQ1_M",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    34: "TQ1_0",
    35: "TQ2_0",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    40: "NVFP4",
    41: "Q1_0",
}
