"""How the numbers of a quantised tensor are coded: plain data, and one formula for all schemes.

    W[r, c] = (number(q[r, c]) - zero[group]) * scale[group]

A `Coding` says how the codes q lie, what number each means, which elements share a scale, and what makes the scale.
It belongs to a `Decoded` tensor (`tensor.py`), whose parts are named:

    scale      one number for each group; the first of what `Coding.scale` makes the scale of
    outer      what that is divided by, or multiplied with
    zero       what is subtracted, plain or packed
    index      which column of the scales each column of W takes, where groups are no neighbours
    bias       what is added after that
    table      the number that each code means
    map, inner of scales that are quantised themselves: the number of each code, and a scale for each block

Nothing here knows a scheme's name: `quantization/` has a row for each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Numbers = Literal["integer", "e2m1", "float", "table", "blocks"]
Scale = Literal["plain", "exponent", "quotient", "product", "nested"]


@dataclass(frozen=True, slots=True)
class Packing:
    """Codes of `bits` bits in words of `word` bits, the first in the lowest ones.

    They run along a row, or `down` a column. Field i of a word is its element `order[i]`, which is i where no order
    is given. A `padded` word holds as many whole fields as it can; in others a field may end in the next word.
    """

    bits: int
    word: int = 32
    down: bool = False
    order: tuple[int, ...] = ()
    padded: bool = False

    @property
    def fields(self) -> int:
        """The fewest elements that fill whole words."""
        words = self.bits * self.word if not self.padded and self.word % self.bits else self.word
        return words // self.bits

    @property
    def words(self) -> int:
        """How many words those are."""
        return self.bits if not self.padded and self.word % self.bits else 1

    def length(self, elements: int) -> int:
        """How many words hold a row, or column, of so many elements."""
        if self.padded or not self.word % self.bits:
            return -(-elements // self.fields)
        return -(-elements * self.bits // self.word)


@dataclass(frozen=True, slots=True)
class Coding:
    """What a code means; see the module's docstring. `packing` None: each code is an element of its own.

    `offset` is subtracted from integers; `step` is added to packed zeros. Integers that are not packed lie in
    [`low`, `high`]. `block` is how many rows and columns share a scale; if the coding is `flat`, codes and scales count
    through the whole tensor in row-major order, and its second number is how many elements do. `after` multiplies
    what the formula gives, in float32. Scales that are quantised themselves lie in blocks of `nested`, and `shift` is
    added to them. Scales of schemes that may be `signed` are negative where a program chose the side of a group that
    has one code more; those of others are quotients of absolute values. Of a coding that is `stepped`, products are
    rounded to the dtype of the scales before a bias is added, where that is the dtype of the result.

    Numbers that are "blocks" lie in blocks of `block[1]` elements along a row, codes and scales in one, as `layout`
    names it: `evaluation/blocks.py` has the formula of each. Codes are their bytes then, and rows are whole.
    """

    numbers: Numbers
    packing: Packing | None
    block: tuple[int, int]
    scale: Scale = "plain"
    offset: int = 0
    zero: Packing | None = None
    step: int = 0
    low: int = -128
    high: int = 127
    flat: bool = False
    after: float = 1.0
    nested: int = 256
    shift: float = 0.0
    signed: bool = False
    stepped: bool = False
    layout: str = ""

    @property
    def unit(self) -> int:
        """The fewest rows of W that fill whole rows of codes."""
        return self.packing.fields if self.packing and self.packing.down else 1

    def turned(self) -> Coding:
        """The coding of the transpose, whose parts are transposed as well. Not of what is flat."""
        return replace(self, packing=_turned(self.packing), zero=_turned(self.zero), block=self.block[::-1])


def _turned(packing: Packing | None) -> Packing | None:
    return packing and replace(packing, down=not packing.down)
