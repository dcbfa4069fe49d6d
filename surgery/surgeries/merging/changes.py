"""What adapters do to a base, found before anything is changed: deltas, tensors in the place of others, tensors that
are new.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...errors import PlanError, listed
from ...files.peft import module_of as module_of
from ...lazy.change import Change, Delta
from ...lazy.tensor import Tensor


@dataclass
class Placed:
    """What the adapters do to the base: deltas by tensor, tensors that take another's place, tensors that are new."""

    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    gains: dict[str, Change] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    under: dict[str, Tensor] = field(
        default_factory=dict
    )  # what adapters hold whole and replace rows of, by name in the file
    dropped: dict[str, Tensor] = field(default_factory=dict)  # second copies of what is placed already
    notes: list[str] = field(default_factory=list)


def place_of(key: str) -> str:
    """The base tensor whose place is taken by what an adapter holds whole under `key`."""
    return f"{module_of(key)}.{key.rpartition('.')[2]}"


def join(placed: Placed, more: Placed) -> None:
    """Add what one more adapter does. Within one, LoRA adds to the tensor that it saved along, such as an lm_head's."""
    if both := (placed.whole.keys() & more.whole.keys()) | (placed.added.keys() & more.added.keys()):
        tip = "merge one of them, or remove the tensor from the other"
        raise PlanError("two adapters replace the same tensor", where=listed(sorted(both)), help=tip)
    if both := (placed.whole.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.whole.keys()):
        tip = "merge them one after another"
        raise PlanError("one adapter replaces a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    if both := (placed.gains.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.gains.keys()):
        tip = "merge them one after another, in the order that you mean"
        raise PlanError("a DoRA adapter scales a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    placed.whole |= more.whole
    placed.gains |= more.gains
    placed.added |= more.added
    placed.under |= more.under
    placed.dropped |= more.dropped
    placed.notes += more.notes
    for name, deltas in more.deltas.items():
        placed.deltas.setdefault(name, []).extend(deltas)
