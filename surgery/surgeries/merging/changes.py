"""What adapters do to a base, found before anything is changed: deltas, tensors in the place of others, tensors that
are new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ...errors import NotSupported, PlanError, listed
from ...files.peft import module_of as module_of
from ...lazy.change import Change, Delta
from ...lazy.tensor import Tensor


@dataclass(frozen=True, slots=True)
class Turn:
    """What an adapter makes of a tensor, whatever that was made into by others before."""

    kind: str  # of the adapter
    outermost_first: bool  # whether of several the last one is the next to the base
    makes: Callable[[Tensor], Tensor]


@dataclass
class Placed:
    """What the adapters do to the base: deltas by tensor, what makes others of them, tensors that take another's
    place, tensors that are new.
    """

    deltas: dict[str, list[Delta]] = field(default_factory=dict)
    gains: dict[str, Change] = field(default_factory=dict)
    turns: dict[str, list[Turn]] = field(default_factory=dict)  # in the order in which they are given
    whole: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    under: dict[str, Tensor] = field(
        default_factory=dict
    )  # what adapters hold whole and replace rows of, by name in the file
    dropped: dict[str, Tensor] = field(default_factory=dict)  # second copies of what is placed already
    notes: list[str] = field(default_factory=list)
    by: dict[str, str] = field(default_factory=dict)  # the path of the adapter that last did something to a tensor


def place_of(key: str) -> str:
    """The base tensor whose place is taken by what an adapter holds whole under `key`."""
    return f"{module_of(key)}.{key.rpartition('.')[2]}"


def join(placed: Placed, more: Placed, path: str) -> None:
    """Add what one more adapter does, which lies in `path`. Within one, LoRA adds to the tensor that it saved along,
    such as an lm_head's. Raises PlanError, NotSupported, naming both adapters.
    """
    try:
        _join(placed, more)
    except (PlanError, NotSupported) as error:
        others = dict.fromkeys(placed.by[name] for name in error.where if name in placed.by)
        where = (*error.where, *(f"of {one}" for one in (*others, path)))
        raise type(error)(error.what, where=where, help=error.help) from error
    for name in (*more.deltas, *more.gains, *more.turns, *more.whole, *more.added):
        placed.by[name] = path


def _join(placed: Placed, more: Placed) -> None:
    if both := (placed.whole.keys() & more.whole.keys()) | (placed.added.keys() & more.added.keys()):
        tip = "merge one of them, or remove the tensor from the other"
        raise PlanError("two adapters replace the same tensor", where=listed(sorted(both)), help=tip)
    if both := (placed.whole.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.whole.keys()):
        tip = "merge them one after another"
        raise PlanError("one adapter replaces a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    if both := (placed.gains.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.gains.keys()):
        tip = "merge them one after another, in the order that you mean"
        raise PlanError("a DoRA adapter scales a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    for name in (placed.whole.keys() & more.turns.keys()) | (placed.turns.keys() & more.whole.keys()):
        tip = "merge them one after another"
        raise PlanError("one adapter replaces a tensor that another one adds to", where=[name], help=tip)
    _check_turns(placed, more)
    placed.whole |= more.whole
    placed.gains |= more.gains
    placed.added |= more.added
    placed.under |= more.under
    placed.dropped |= more.dropped
    placed.notes += more.notes
    for name, deltas in more.deltas.items():
        placed.deltas.setdefault(name, []).extend(deltas)
    for name, turns in more.turns.items():
        placed.turns.setdefault(name, []).extend(turns)


def turned(placed: Placed, name: str, tensor: Tensor) -> Tensor:
    """The tensor as all adapters that do not add to it, but make another one of it, leave it."""
    turns = placed.turns.get(name, [])
    for turn in reversed(turns) if turns and turns[0].outermost_first else turns:
        tensor = turn.makes(tensor)
    return tensor


def _check_turns(placed: Placed, more: Placed) -> None:
    """Raise NotSupported where two adapters on one tensor have neither a sum nor an order."""
    for one, other in ((placed, more), (more, placed)):
        for name in one.turns.keys() & {*other.deltas, *other.gains}:
            _refuse(name, one.turns[name][0].kind, "one that adds to it")
    for name in placed.turns.keys() & more.turns.keys():
        kinds = [placed.turns[name][0].kind, more.turns[name][0].kind]
        if kinds[0] != kinds[1]:
            _refuse(name, *kinds)


def _refuse(name: str, kind: str, other: str) -> None:
    tip = "each was trained on the base alone: merge one of them, or each into a base of its own"
    raise NotSupported(f"{kind} on a tensor has no sum with {other}, and no order", where=[name], help=tip)
