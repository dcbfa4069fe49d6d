"""The law of conservation: every element that was opened reaches an output, or its tensor was dropped by name."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..checkpoint import Checkpoint
from ..errors import PlanError, listed
from ..lazy.runs import Piece, lower
from ..lazy.tensor import (
    Before,
    Decoded,
    Encoded,
    Fresh,
    Made,
    Picked,
    Product,
    Restored,
    Rowwise,
    Shape,
    Stored,
    Sum,
    Tensor,
    changes,
    children,
    stored,
)
from ..names import natural

_PRIME, _POINT = 2**127 - 1, 3**79


def check_conserved(checkpoint: Checkpoint) -> None:
    """Raise PlanError for tensors that reach no output, or not in full, and were not dropped by name.

    Of a tensor that outputs share among them, each element must come as often as every other: `_mark` tells.
    """
    used = _Used()
    for tensor in checkpoint.tensors.values():
        used.count(tensor)
    excused = {
        _key(leaf)
        for tensor in (*checkpoint.dropped.values(), *checkpoint.replaced.values())
        for leaf in stored(tensor)
    }
    for source in checkpoint.inputs:
        copies = Counter(map(_key, source.tensors.values()))  # empty tensors may lie at one place
        lost = [
            name
            for name, tensor in source.tensors.items()
            if (key := _key(tensor)) not in excused
            and not used.arrives(tensor, key, copies[key], partly=name in source.partly)
        ]
        if lost:
            cut = {n for n in lost if _key(source.tensors[n]) in used.parts}
            raise PlanError(
                f"{len(lost)} tensors of the {source.role} reach no output, or not in full",
                where=[source.path, *listed([f"{n} (in part)" if n in cut else n for n in sorted(lost, key=natural)])],
                help="a surgery lost them; drop them by name if that is meant: surgery drop --pattern REGEX",
            )


_Key = tuple[str, int, Shape]


@dataclass
class _Used:
    """What outputs are made of: how often a tensor is used in one piece; elements used in pieces, and their mark."""

    whole: Counter[_Key] = field(default_factory=Counter)
    parts: dict[_Key, tuple[int, int]] = field(default_factory=dict)

    def count(self, tensor: Tensor) -> None:
        if isinstance(tensor, Stored):
            self.whole[_key(tensor)] += 1
            return
        self.whole.update(_key(leaf) for leaf in stored(tensor) if not leaf.size)  # lowering leaves nothing of them
        for piece in lower(tensor):
            match piece.leaf:
                case Stored() as leaf:
                    used, mark = self.parts.get(_key(leaf), (0, 0))
                    self.parts[_key(leaf)] = used + piece.size, (mark + _mark(piece)) % _PRIME
                case Sum() as leaf:
                    for child in (leaf.base, *(f for change in changes(leaf.deltas, leaf.gain) for f in change.given)):
                        self.count(child)
                case Product(by=by):  # the other one is a base, which arrives by itself
                    self.count(by)
                case Before(after=after) as leaf:
                    self.count(after)
                    own = set(stored(after))  # a turn reads what was written once more
                    for child in children(leaf)[1:]:
                        if not set(stored(child)) <= own:
                            self.count(child)
                case Restored() | Decoded() | Encoded() | Fresh() | Made() | Rowwise() | Picked() as leaf:
                    for child in children(leaf):
                        self.count(child)

    def arrives(self, tensor: Stored, key: _Key, copies: int, *, partly: bool) -> bool:
        if self.whole[key] >= copies:
            return True
        if key not in self.parts:
            return False
        if partly:
            return True
        used, mark = self.parts[key]
        times, rest = divmod(used, tensor.size)
        return not rest and mark == times * _mark(lower(tensor)[0]) % _PRIME


def _key(leaf: Stored) -> _Key:
    return leaf.file.path, leaf.offset, leaf.shape


def _mark(piece: Piece) -> int:
    """The sum of `_POINT` to the power of each of the leaf's elements in the piece, modulo a prime.

    Like a checksum of a set: equal for pieces of the same elements, in whatever order and however cut.
    """
    mark = pow(_POINT, piece.at, _PRIME)
    for dim in piece.dims:
        step = pow(_POINT, dim.at, _PRIME)
        mark = mark * (pow(step, dim.count, _PRIME) - 1) * pow(step - 1, -1, _PRIME) % _PRIME
    return mark
