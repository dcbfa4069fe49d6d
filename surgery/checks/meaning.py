"""Quantised weights of two checkpoints, side by side as what their codes mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..checkpoint import Checkpoint
from ..lazy.dtypes import ARITHMETIC, F32
from ..lazy.tensor import Tensor, in_dtype
from ..quantization.quantised import Quantisation


@dataclass(frozen=True)
class Meaning:
    """`pairs` of weights by the names that they have in 16 bits, in float32, of those that are quantised in either
    and not stored alike in both; `kinds` says how they are. `codes` are the stored tensors that they are made of,
    which are no numbers by themselves, `parts` those of each weight.
    """

    pairs: Mapping[str, tuple[Tensor, Tensor]]
    kinds: Mapping[str, tuple[str, str]]
    parts: Mapping[str, frozenset[str]]

    @cached_property
    def codes(self) -> frozenset[str]:
        """Those of all weights."""
        return frozenset().union(*self.parts.values())


def made_of(held: tuple[Quantisation, Quantisation]) -> dict[str, frozenset[str]]:
    """The stored tensors that each weight is made of which is quantised in either."""
    return {
        name: frozenset(part for one in held if name in one.weights for part in one.weights[name].parts)
        for name in dict.fromkeys((*held[0].weights, *held[1].weights))
    }


def meanings(a: Checkpoint, b: Checkpoint, held: tuple[Quantisation, Quantisation], same: Collection[str]) -> Meaning:
    """What quantised weights mean in both, unless all that they are made of is the `same`."""
    pairs, kinds = dict[str, tuple[Tensor, Tensor]](), dict[str, tuple[str, str]]()
    made, alike = made_of(held), frozenset(same)
    for name, parts in made.items():
        found = [_found(side, one, name) for side, one in zip((a, b), held, strict=True)]
        one, other = found
        if one and other and one[0].shape == other[0].shape and not parts <= alike:
            pairs[name], kinds[name] = (one[0], other[0]), (one[1], other[1])
    return Meaning(pairs, kinds, made)


def _found(side: Checkpoint, held: Quantisation, name: str) -> tuple[Tensor, str] | None:
    """The weight in float32, and how it is stored; None where it is not there as numbers."""
    if one := held.weights.get(name):
        return in_dtype(one.weight, F32), one.scheme
    tensor = side.tensors.get(name)
    if tensor is None or tensor.dtype not in ARITHMETIC:
        return None
    return in_dtype(tensor, F32), tensor.dtype.name
