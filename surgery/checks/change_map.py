"""What changed where: each tensor's change, measured, and laid out by layer and module.

Tensors are compared by name, quantised weights by what their codes mean. What a merge would change is measured on the
merge itself, before it is rounded and after.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..checkpoint import Checkpoint
from ..evaluation.compare import identical
from ..evaluation.spread import Spread, spread
from ..evaluation.workspace import Workspace
from ..files.peft import Adapter
from ..lazy.dtypes import ARITHMETIC, F32, F64, Dtype
from ..lazy.tensor import Tensor, in_dtype
from ..names import natural
from ..quantization.kept_whole import held_in
from .at_once import at_once
from .diff import OnTensor
from .proof import Merging

_LAYER = re.compile(r"(?P<stack>.*?)\.?\b(?P<layer>\d+)\.(?P<module>.+)", re.DOTALL)
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.)")
OUTSIDE = ""  # the stack of tensors that are in no layer


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor lies: `layer` of a `stack`, such as 3 of model.layers; -1 outside of layers. `module` is called
    without `.weight`; further numbers in it, such as an expert's, are a `*`.
    """

    stack: str
    layer: int
    module: str


def place_of(name: str) -> Place:
    """Where the tensor of that name lies: the first number in it is its layer's."""
    found = _LAYER.fullmatch(name)
    if found is None or len(found["layer"]) > 9:
        return Place(OUTSIDE, -1, name.removesuffix(".weight"))
    module = _NUMBER.sub("*", found["module"]).removesuffix(".weight")
    return Place(found["stack"] or "layers", int(found["layer"]), module)


@dataclass(frozen=True, slots=True)
class Moved:
    """How far one tensor, or several together, moved. `spread` is None where the values are no numbers that are
    computed: then nothing but `changed` is known.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    changed: bool
    spread: Spread | None

    @property
    def meant(self) -> bool:
        """Whether it changed, or was to change and rounding took all of it back."""
        return self.changed or bool(self.spread and self.spread.meant)

    @property
    def relative(self) -> float | None:
        """‖after - before‖ / ‖before‖; infinite where there was nothing but zeros before, None where it is unknown."""
        return _relative([self.spread]) if self.spread else None


def _relative(spreads: Sequence[Spread]) -> float:
    change, norm = (math.fsum(getattr(one, side) for one in spreads) for side in ("change", "norm"))
    return math.sqrt(change / norm) if norm else math.inf if change else 0.0


@dataclass(frozen=True, slots=True)
class Cell:
    """All tensors of one module of one layer: mostly its weight, or that of each of its experts."""

    place: Place
    tensors: tuple[Moved, ...]

    @property
    def _known(self) -> list[Spread]:
        return [one.spread for one in self.tensors if one.spread]

    @property
    def relative(self) -> float | None:
        """‖change‖ / ‖before‖ of all of them together."""
        return _relative(self._known) if self._known else None

    @property
    def changed(self) -> float | None:
        """The share of the weights that are others now."""
        return _share(sum(s.differing for s in self._known), sum(s.elements for s in self._known))

    @property
    def erased(self) -> float | None:
        """Of the weights that were to change, the share that rounding leaves as they were."""
        if any(one.meant is None for one in self._known):
            return None
        return _share(sum(s.erased or 0 for s in self._known), sum(s.meant or 0 for s in self._known))

    @property
    def rank(self) -> float | None:
        """The effective rank of the change: of several tensors, the mean over those that changed."""
        ranks = [one.rank for one in self._known if one.rank is not None]
        return math.fsum(ranks) / len(ranks) if ranks else None

    @property
    def nonfinite(self) -> int:
        """How many elements are NaN or infinite."""
        return sum(one.nonfinite for one in self._known)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


@dataclass(frozen=True)
class ChangeMap:
    """How far each tensor of both is from `before` in `after`, in natural order; `only_before` and `only_after` are
    in one of them alone, `unlike` have another shape. Of a merge that is not made yet, `after` names the adapters.
    """

    before: str
    after: str
    tensors: tuple[Moved, ...]
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    merging: bool = False  # whether it is known what was to change

    def __repr__(self) -> str:
        return f"<ChangeMap of {len(self.tensors)} tensors: {sum(one.changed for one in self.tensors)} changed>"

    @cached_property
    def cells(self) -> Mapping[Place, Cell]:
        """By place, as far as anything changed, or was to change, in its module, in some layer."""
        held: dict[Place, list[Moved]] = defaultdict(list)
        for one in self.tensors:
            held[place_of(one.name)].append(one)
        moved = {(p.stack, p.module) for p, those in held.items() if any(one.meant for one in those)}
        return {p: Cell(p, tuple(those)) for p, those in held.items() if (p.stack, p.module) in moved}

    def places_of(self, names: Iterable[str]) -> frozenset[Place]:
        """The cells that hold any of the tensors."""
        return frozenset(map(place_of, names)) & self.cells.keys()

    @property
    def stacks(self) -> tuple[str, ...]:
        """The stacks of layers in which something changed, in the order of their tensors."""
        return tuple(dict.fromkeys(place.stack for place in self.cells if place.stack != OUTSIDE))

    def layers(self, stack: str) -> list[int]:
        """The layers of a stack."""
        return sorted({place_of(one.name).layer for one in self.tensors if place_of(one.name).stack == stack})

    def modules(self, stack: str) -> list[str]:
        """The modules of a stack in which something changed, in the order of their tensors."""
        return list(dict.fromkeys(place.module for place in self.cells if place.stack == stack))

    @property
    def outside(self) -> tuple[Cell, ...]:
        """What changed outside of layers."""
        return tuple(cell for place, cell in self.cells.items() if place.stack == OUTSIDE)

    @property
    def still(self) -> tuple[str, ...]:
        """The modules in which nothing changed."""
        all_of = dict.fromkeys((p.stack, p.module) for p in map(place_of, (one.name for one in self.tensors)))
        moved = {(place.stack, place.module) for place in self.cells}
        return tuple(dict.fromkeys(module for stack, module in all_of if (stack, module) not in moved))


def numbers_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Its tensors by name, quantised weights as what their codes mean, in float32, without what these are made of."""
    held = held_in(checkpoint)
    parts = {part for one in held.weights.values() for part in (*one.parts, *one.left)} | set(held.left)
    plain = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in parts}
    return plain | {name: in_dtype(one.weight, F32) for name, one in held.weights.items()}


def changes_of(
    before: Checkpoint,
    after: Checkpoint | None = None,
    adapters: Sequence[Adapter] = (),
    how: Merging | None = None,
    *,
    names: Collection[str] | None = None,
    on_tensor: OnTensor | None = None,
) -> ChangeMap:
    """What differs in `after`, and with `adapters` also what of them rounding took back; without `after`, what merging
    them would change.

    With `names`, all others are known to be the same. Raises what `merge` raises. Holds a few windows of 4 MB and a
    sketch for each core, never a whole tensor.
    """
    whole = (how or Merging()).whole(before, adapters) if adapters else None
    one, wanted = numbers_of(before), dict(whole.tensors) if whole else {}
    other = numbers_of(after) if after is not None else wanted
    both = sorted(one.keys() & other.keys(), key=natural)
    named = frozenset(both if names is None else names).__contains__
    sides = [
        _Sides(n, one[n], other[n] if after is not None else None, _of_shape(one[n], wanted.get(n)), named(n))
        for n in both
        if one[n].shape == other[n].shape
    ]
    return ChangeMap(
        before.path,
        after.path if after is not None else ", ".join(adapter.path for adapter in adapters),
        tuple(_measured(sides, on_tensor)),
        tuple(sorted(one.keys() - other.keys(), key=natural)),
        tuple(sorted(other.keys() - one.keys(), key=natural)),
        tuple(n for n in both if one[n].shape != other[n].shape),
        merging=bool(adapters),
    )


def _of_shape(before: Tensor, wanted: Tensor | None) -> Tensor | None:
    return wanted if wanted is not None and wanted.shape == before.shape else None


@dataclass(frozen=True, slots=True)
class _Sides:
    """A tensor before; as it is after, where that is there; as it was wanted, where that is known."""

    name: str
    before: Tensor
    after: Tensor | None
    wanted: Tensor | None
    known: bool

    @property
    def nbytes(self) -> int:
        return self.before.nbytes + (self.after or self.before).nbytes


def _measured(sides: Sequence[_Sides], on_tensor: OnTensor | None) -> Iterator[Moved]:
    """In order; as many at once as there are cores."""
    total = sum(one.nbytes for one in sides)
    with at_once(_moved, sides, lambda one: one.nbytes) as found:
        for one, moved in zip(sides, found, strict=True):
            if on_tensor:
                on_tensor(one.name, one.nbytes, total)
            yield moved


def _moved(one: _Sides, work: Workspace) -> Moved:
    before, after, wanted = one.before, one.after, one.wanted
    shown = after or wanted or before
    if not one.known or (_same(before, shown, work) and (wanted is None or _alike(before, wanted))):
        return Moved(one.name, _kind(before), before.shape, False, Spread(before.size))
    sides = [side for side in (before, after, wanted) if side is not None]
    if not before.size or any(side.dtype not in ARITHMETIC for side in sides):
        return Moved(one.name, _kind(before), before.shape, not _same(before, shown, work), None)
    found = spread(before, after, work, wanted=wanted, dtype=shown.dtype)
    changed = bool(found.differing or (after is None and found.meant))
    return Moved(one.name, _kind(before), before.shape, changed, found)


def _same(before: Tensor, after: Tensor, work: Workspace) -> bool:
    """Whether they are the same numbers as they stand; what is computed is looked at later."""
    return _alike(before, after) or (before.dtype == after.dtype and identical(before, after, work))


def _alike(before: Tensor, wanted: Tensor) -> bool:
    wide: Dtype = F64 if F64 in (before.dtype, wanted.dtype) else F32
    if before == wanted:
        return True
    if not {before.dtype, wanted.dtype} <= set(ARITHMETIC):
        return False
    return in_dtype(before, wide) == in_dtype(wanted, wide)


def _kind(tensor: Tensor) -> str:
    return tensor.dtype.name
