"""Diff: what differs between two checkpoints, or two adapters?

By name, whatever the shards; quantised weights by what their codes mean as well, also against 16 bits. Values are
read in a stream, as numbers only where bytes differ. Of config.json and adapter_config.json the fields are compared,
of other files the bytes; shards, indices and what surgery itself notes are no files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint import Checkpoint, of_adapter, open_any
from ..errors import FormatError, SurgeryError, printable
from ..evaluation.compare import identical
from ..evaluation.measure import Measure, measure
from ..evaluation.read import content, same_content
from ..evaluation.workspace import Workspace
from ..files.adapters.opening import open_adapter
from ..files.peft import CONFIG as ADAPTER_CONFIG
from ..files.peft import Adapter, is_adapter
from ..files.strict import MEND, parse_object
from ..lazy.tensor import File, Tensor
from ..names import natural, select
from ..opened import takes_opened
from ..quantization.kept_whole import held_in
from .at_once import at_once
from .meaning import Meaning, made_of, meanings

OnTensor = Callable[[str, int, int], None]  # a tensor's name, its bytes, and those of all that are looked at
CONFIGS = ("config.json", ADAPTER_CONFIG)
ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Change:
    """A tensor of both that is not the same: its dtype and shape in either, and how far apart the values are.

    `measure` is None where the shapes differ, where torch has no such dtype, and for codes.
    """

    name: str
    a: str
    b: str
    measure: Measure | None


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a config, by its path, and its value in either, as JSON; `absent` where it is not there."""

    name: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Names:
    """What only one of two has, and what both have but not alike."""

    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """What `diff` found between `a` and `b`. `unlike` tensors have another dtype or shape, `changed` ones other
    bytes. `decoded` are weights that are quantised in either and not stored alike in both, as what they mean.
    """

    a: str
    b: str
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    unlike: tuple[Change, ...]
    changed: tuple[Change, ...]
    identical: tuple[str, ...]
    config: tuple[Field, ...]
    files: Names
    decoded: tuple[Change, ...] = ()

    @property
    def recoded(self) -> tuple[str, ...]:
        """Weights whose values are the same, and only codes or scales are others."""
        return tuple(c.name for c in self.decoded if c.measure and not c.measure.largest and not c.measure.nonfinite)

    def __repr__(self) -> str:
        counts = ("only_a", "only_b", "unlike", "changed", "identical", "config")
        said = ", ".join(f"{len(found)} {name}" for name in counts if (found := getattr(self, name)))
        verdict = "equal" if self.equal else "different"
        return f"<Difference of {printable(self.a)} and {printable(self.b)}: {verdict}; {said or 'no tensors'}>"

    @property
    def equal(self) -> bool:
        """Whether there is no difference at all."""
        files = self.files
        return not any(
            (
                self.only_a,
                self.only_b,
                self.unlike,
                self.changed,
                self.config,
                files.only_a,
                files.only_b,
                files.changed,
            )
        )

    def __bool__(self) -> bool:
        raise TypeError("true if equal, or if there is a difference? ask for `equal`")


Side = str | os.PathLike[str] | Checkpoint | Adapter


@takes_opened
def diff(a: Side, b: Side, *, tensors: str = "", on_tensor: OnTensor | None = None, **said: Any) -> Difference:
    """What differs between two checkpoints, or two adapters: opened, or their paths. Each may be sharded as it
    likes.

    With `tensors`, only those whose whole name matches, and no file, are compared, and of a quantised weight all that
    it is made of where its name matches, or that of a part; raises NothingMatched where none does. `on_tensor` is
    called after each tensor. What is `said` of adapters of other tools is as for `open_adapter`. Holds a few windows
    of 4 MB for each core, never a whole tensor.
    """
    one, other = opened_side(a, said), opened_side(b, said)
    if (ADAPTER_CONFIG in one.files) != (ADAPTER_CONFIG in other.files):
        raise SurgeryError(
            "a checkpoint and an adapter have no tensor in common",
            where=[one.path, other.path],
            help="to see whether an adapter is merged: surgery verify MERGED --base BASE --adapter ADAPTER",
        )
    known, held = {**one.tensors, **other.tensors}, (held_in(one), held_in(other))
    names = _asked(known, made_of(held), tensors) if tensors else sorted(known, key=natural)
    pairs = [(n, one.tensors[n], other.tensors[n]) for n in names if n in one.tensors and n in other.tensors]
    changes = dict(_changes(pairs, on_tensor))
    meaning = meanings(one, other, held, [name for name, change in changes.items() if change is None])
    found = [_bare(change, meaning) for change in changes.values() if change]
    return Difference(
        one.path,
        other.path,
        only_a=tuple(n for n in names if n not in other.tensors),
        only_b=tuple(n for n in names if n not in one.tensors),
        unlike=tuple(change for change in found if change.a != change.b),
        changed=tuple(change for change in found if change.a == change.b),
        identical=tuple(name for name, change in changes.items() if change is None),
        config=() if tensors else _fields(one.files, other.files),
        files=Names((), ()) if tensors else _files(one.files, other.files),
        decoded=_decoded(meaning, set(names)),
    )


def _asked(known: Mapping[str, Tensor], weights: Mapping[str, Set[str]], pattern: str) -> list[str]:
    """The stored tensors that a pattern means, by their own names or those of weights that are made of them."""
    chosen = set(select({**known, **weights}, pattern))
    whole = {part for name, parts in weights.items() if not chosen.isdisjoint((name, *parts)) for part in parts}
    return sorted((chosen | whole) & known.keys(), key=natural)


def _bare(change: Change, meaning: Meaning) -> Change:
    """Without what is said of codes as if they were numbers."""
    return replace(change, measure=None) if change.name in meaning.codes else change


def _decoded(meaning: Meaning, names: Set[str]) -> tuple[Change, ...]:
    """How far weights are apart that are not stored alike: those that are, or are made of, one of `names`."""
    pairs = [(n, *pair) for n, pair in meaning.pairs.items() if n in names or not names.isdisjoint(meaning.parts[n])]
    return tuple(
        Change(name, *meaning.kinds[name], change.measure if change else _same(meaning.pairs[name][0]))
        for name, change in _changes(pairs, None)
    )


def _same(tensor: Tensor) -> Measure:
    return Measure(tensor.size, 0, 0.0, 0.0, 0.0, None)


def _changes(
    pairs: Sequence[tuple[str, Tensor, Tensor]], on_tensor: OnTensor | None
) -> Iterator[tuple[str, Change | None]]:
    """Each name and what is not the same under it, in order; as many at once as there are cores."""
    total = sum(x.nbytes + y.nbytes for _, x, y in pairs)
    with at_once(_change, pairs, lambda pair: pair[1].nbytes) as found:
        for (name, x, y), change in zip(pairs, found, strict=True):
            if on_tensor:
                on_tensor(name, x.nbytes + y.nbytes, total)
            yield name, change


def opened_side(side: Side, said: Mapping[str, Any]) -> Checkpoint:
    """What is compared; what is said is of adapters that do not say it themselves, as PEFT's do."""
    if isinstance(side, str | os.PathLike):
        given = any(value is not None for value in said.values()) and not is_adapter(side)
        side = open_adapter(side, **said) if given else open_any(side)
    return of_adapter(side) if isinstance(side, Adapter) else side


def _change(pair: tuple[str, Tensor, Tensor], work: Workspace) -> Change | None:
    name, a, b = pair
    if identical(a, b, work):
        return None
    return Change(name, _kind(a), _kind(b), measure(a, b, work) if a.shape == b.shape else None)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"


def _fields(a: Mapping[str, File | bytes], b: Mapping[str, File | bytes]) -> tuple[Field, ...]:
    """The fields in which the configs differ that both have."""
    found: list[Field] = []
    for name in CONFIGS:
        if name in a and name in b:
            one, other = (_flat(parse_object(content(side[name]), _broken(side[name], name))) for side in (a, b))
            found += [
                Field(key, one.get(key, ABSENT), other.get(key, ABSENT))
                for key in dict.fromkeys((*one, *other))
                if one.get(key, ABSENT) != other.get(key, ABSENT)
            ]
    return tuple(found)


def _flat(content: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Each field by its path, such as rope_parameters.rope_theta, as JSON."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{path}{key}.")
        else:
            found[f"{path}{key}"] = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return found


def _files(a: Mapping[str, File | bytes], b: Mapping[str, File | bytes]) -> Names:
    both = [n for n in sorted(a) if n in b and n not in CONFIGS]
    only_a, only_b = (tuple(sorted(x.keys() - y.keys())) for x, y in ((a, b), (b, a)))
    return Names(only_a, only_b, tuple(n for n in both if not same_content(a[n], b[n])))


def _broken(file: File | bytes, name: str) -> Callable[[str], FormatError]:
    return lambda what: FormatError(what, where=[file.path if isinstance(file, File) else name], help=MEND)
