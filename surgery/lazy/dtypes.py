"""The dtypes of safetensors 0.8, in the order in which it ranks them.

`save_file` sorts tensors by descending rank, then by name; sub-byte dtypes are packed, so a tensor's bits must fill
whole bytes. Source: the `Dtype` enum of safetensors 0.8, checked against files that it wrote.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a dtype's values are."""

    FLOAT = "float"
    INTEGER = "integer"
    BOOLEAN = "boolean"
    COMPLEX = "complex"


@dataclass(frozen=True, slots=True)
class Dtype:
    """A safetensors dtype: its name in headers, its bits per element, its rank in `save_file`'s order."""

    name: str
    bits: int
    rank: int
    kind: Kind

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


_TABLE = (
    ("BOOL", 8, Kind.BOOLEAN),
    ("F4", 4, Kind.FLOAT),
    ("F6_E2M3", 6, Kind.FLOAT),
    ("F6_E3M2", 6, Kind.FLOAT),
    ("U8", 8, Kind.INTEGER),
    ("I8", 8, Kind.INTEGER),
    ("F8_E5M2", 8, Kind.FLOAT),
    ("F8_E4M3", 8, Kind.FLOAT),
    ("F8_E8M0", 8, Kind.FLOAT),
    ("F8_E4M3FNUZ", 8, Kind.FLOAT),
    ("F8_E5M2FNUZ", 8, Kind.FLOAT),
    ("I16", 16, Kind.INTEGER),
    ("U16", 16, Kind.INTEGER),
    ("F16", 16, Kind.FLOAT),
    ("BF16", 16, Kind.FLOAT),
    ("I32", 32, Kind.INTEGER),
    ("U32", 32, Kind.INTEGER),
    ("F32", 32, Kind.FLOAT),
    ("C64", 64, Kind.COMPLEX),
    ("F64", 64, Kind.FLOAT),
    ("I64", 64, Kind.INTEGER),
    ("U64", 64, Kind.INTEGER),
)

DTYPES: dict[str, Dtype] = {name: Dtype(name, bits, rank, kind) for rank, (name, bits, kind) in enumerate(_TABLE)}

F16, BF16, F32, F64 = (DTYPES[name] for name in ("F16", "BF16", "F32", "F64"))

# What arithmetic can read and round to: float32 holds every value of the first three exactly.
ARITHMETIC = (F16, BF16, F32, F64)

E4M3, E5M2 = DTYPES["F8_E4M3"], DTYPES["F8_E5M2"]

# What is cast, without any scale: all that arithmetic reads, and the plain numbers of 8 bits.
CASTABLE = (*ARITHMETIC, E4M3, E5M2)
# What holds every value of a dtype.
WIDER = {
    E4M3: (F16, BF16, F32, F64),
    E5M2: (F16, BF16, F32, F64),
    F16: (F32, F64),
    BF16: (F32, F64),
    F32: (F64,),
    F64: (),
}
