"""How numbers become codes for the first time: the rules of programs that quantise without calibration.

Each block of a tensor is coded under a scale that is made of its own elements alone. Plain data; `evaluation/fresh.py`
carries the rules out, bit for bit as the programs do on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["nf4", "dynamic", "fp8"]


@dataclass(frozen=True, slots=True)
class Rule:
    """`kind` says which codes: `nf4`, two in a byte, and `dynamic`, of 8 bits, both in blocks of `block[1]` elements
    that run through the whole tensor; `fp8`, in blocks of `block` rows and columns. `shift` is subtracted first.
    """

    kind: Kind
    block: tuple[int, int]
    shift: float = 0.0

    @property
    def packed(self) -> int:
        """How many codes are in one element of what is stored."""
        return 2 if self.kind == "nf4" else 1
