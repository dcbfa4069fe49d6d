"""What small tensors are made into by rules with names: one file a family of adapters, one row a rule.

A rule is given its inputs as float64 (integers as int64), and numbers by name; what it makes is float64. It depends on
nothing else, so that two machines differ in the last bits of a float64 at most. Names are parts of a plan's identity:
a rule that comes to mean something else gets another one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from . import banks, bases, drawn, elementwise, mixtures, rotations, tucker, wavelets

if TYPE_CHECKING:
    import torch

Rule = Callable[[Sequence["torch.Tensor"], Mapping[str, float | str]], "torch.Tensor"]

RULES: Mapping[str, Rule] = {
    **banks.RULES,
    **bases.RULES,
    **drawn.RULES,
    **elementwise.RULES,
    **mixtures.RULES,
    **rotations.RULES,
    **tucker.RULES,
    **wavelets.RULES,
}
