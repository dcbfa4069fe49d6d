"""A merge and what it should be, side by side: where either is quantised, in a form in which they can be compared.

Weights that no adapter touches are compared as they are stored, codes and companions; what is in 16 bits, with what
the base's codes mean and the adapters add; what was coded again, by what it means (`recoded.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..evaluation.compare import identical
from ..evaluation.workspace import Workspace
from ..lazy.dtypes import F32
from ..lazy.tensor import Tensor, in_dtype
from ..quantization.quantised import Quantisation
from ..quantization.scheme import Quantised
from ..surgeries.merging.quantised import read_quantised

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Facing:
    """Tensors by name: what the merge has, what it should have, and what the base has. `codes` are weights that are to
    be judged by what they mean: (how they are stored, in the base, as merged).
    """

    got: Tensors
    wanted: Tensors
    before: Tensors
    codes: Mapping[str, tuple[Quantised, Tensor, Tensor]]


def facing(
    merged: Checkpoint, base: Checkpoint, whole: Checkpoint, again: Checkpoint | None, work: Workspace
) -> Facing:
    """`merged` beside `whole`, which is the base with the adapters, all in 16 bits; or beside `again`, where the
    codes are known to have been made again under the base's scales.
    """
    held, now = read_quantised(base), read_quantised(merged)
    got, wanted, before = dict(merged.tensors), dict(whole.tensors), dict(base.tensors)
    if not (held.weights or now.weights):
        return Facing(got, wanted, before, {})
    weights = {name: one.weight for name, one in held.weights.items()}
    before |= {name: weight for name, weight in weights.items() if name in got and name not in now.weights}
    for part in _beside(held):
        if part in got and part in base.tensors:
            wanted[part] = base.tensors[part]
    known, codes = again or base, dict[str, tuple[Quantised, Tensor, Tensor]]()
    for name, one in now.weights.items():
        if name not in wanted:
            continue
        was, full = weights.get(name, before.get(name)), wanted.pop(name)
        touched = was is None or in_dtype(full, F32) != in_dtype(was, F32)
        if (again or not touched) and _as_stored(one, merged, known, work):
            wanted |= {part: known.tensors[part] for part in one.parts}
            continue
        codes[name] = one, full if was is None else was, full
        for part in (name, *one.parts):
            if again and part in known.tensors and part != one.codes:
                wanted[part] = known.tensors[part]
            else:
                got.pop(part, None)
    return Facing(got, wanted, before, codes)


def _beside(held: Quantisation) -> list[str]:
    return [*held.left, *(part for one in held.weights.values() for part in one.left)]


def _as_stored(one: Quantised, merged: Checkpoint, known: Checkpoint, work: Workspace) -> bool:
    """Whether codes and companions are, byte for byte, what is known under these names."""
    parts = one.parts
    return all(n in known.tensors and identical(merged.tensors[n], known.tensors[n], work) for n in parts)
