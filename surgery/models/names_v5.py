"""Names in files and names in memory: transformers renames some modules of older checkpoints when it loads them.

    files    language_model.model.layers.0.self_attn.q_proj.weight
    memory   model.language_model.layers.0.self_attn.q_proj.weight

An adapter has the names of the class it was trained on, in memory, or those of an older class, which the files still
have. `places` finds the tensors that are meant, by the renames of the base's model types (`names_v5_table.py`), or
says that more than one reading would fit. A rename is never taken in part.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from .fused.layout import Config, sections
from .names_v5_table import BASES, RENAMES, SAME


@dataclass(frozen=True, slots=True)
class Rename:
    """One rename of a class, from a name in files to a name in memory."""

    pattern: str
    replacement: str
    owner: str  # the class name or model type that has it
    scope: str | None = ""  # what may stand before the class's own names, with its dot; None: anything, but something

    def __call__(self, name: str) -> str:
        for start in self._starts(name):
            head, tail = name[:start], name[start:]
            if found := _compiled(self.pattern).search(tail):
                return f"{head}{tail[: found.start()]}{found.expand(self.replacement)}{tail[found.end() :]}"
        return name

    def __str__(self) -> str:
        return f"{self.pattern} -> {self.replacement}"

    def _starts(self, name: str) -> Iterable[int]:
        """Where the class's own names may begin in `name`."""
        if self.scope is None:
            return (
                [dot.end() for dot in re.finditer(r"\.", name)]
                if self.pattern.startswith("^")
                else [name.find(".") + 1]
            )
        return [len(self.scope) if name.startswith(self.scope) else 0]


@dataclass(frozen=True, slots=True)
class Reading:
    """Where wanted names lie, as one reading of them has it."""

    how: str  # what the adapter's and the base's names are
    places: Mapping[str, str]  # wanted name -> offered name
    renames: tuple[Rename, ...]  # those that were of use

    @property
    def moves(self) -> dict[str, str]:
        """The places that are called otherwise than what belongs there; where there are none, nothing is to be told."""
        return {name: place for name, place in self.places.items() if name != place}

    def __str__(self) -> str:
        name, place = next(iter(self.moves.items()))
        by = ", ".join(dict.fromkeys(rename.owner for rename in self.renames))
        rules = "; ".join(map(str, dict.fromkeys(map(str, self.renames))))
        return f"{self.how}: {name} is {place}, by the renames of {by} ({rules})"


def renames_of(config: Config) -> list[Rename]:
    """The renames of a model by its config.json, in transformers' order: of its class, of the class inside, of
    nested models.
    """
    found: list[Rename] = []
    names, seen = [str(name) for name in config.get("architectures") or []], set[str]()

    def take(identifiers: Sequence[str], scope: str | None) -> None:
        owner = next((name for name in identifiers if SAME.get(name, name) in RENAMES), None)
        if owner and SAME.get(owner, owner) not in seen:
            seen.add(SAME.get(owner, owner))
            found.extend(Rename(*rule, owner, scope) for rule in RENAMES[SAME.get(owner, owner)])

    for depth, section in enumerate(sections(config)):
        kind = str(section.get("model_type", ""))
        base, prefix = BASES.get(kind, ("", ""))
        if depth == 0:
            take([*names, kind], "")
            if base not in names:
                take([base], f"{prefix}." if prefix else "")
        else:
            take([base, kind], None)
    take(["legacy"], "")
    return found


def in_memory(name: str, renames: Iterable[Rename]) -> str:
    """What a tensor of a file is called in memory; a name of memory stays as it is."""
    for rename in renames:
        name = rename(name)
    return name


def places(wanted: Collection[str], offered: Collection[str], config: Config) -> list[Reading]:
    """The readings of `wanted` names that place some of them among those `offered`: best first, each without two in
    one place.
    """
    renames = renames_of(config)
    plain = {name: name for name in offered}
    loaded: dict[str, str] = {}
    twice = set()
    for name in offered:
        key = in_memory(name, renames)
        if key in loaded:
            twice.add(key)
        loaded[key] = name
    loaded = {key: name for key, name in loaded.items() if key not in twice}
    new = {name: in_memory(name, renames) for name in wanted}
    same = {name: name for name in wanted}
    found: list[Reading] = []
    for how, names, table in (
        ("the adapter has the names of the class in memory, the base's files have older ones", same, loaded),
        ("the adapter has older names, the base's files have those of the class in memory", new, plain),
        ("the adapter has older names, and so have the base's files", new, loaded),
    ):
        placed = {name: table[key] for name, key in names.items() if key in table}
        if placed and len(set(placed.values())) == len(placed) and not any(placed == one.places for one in found):
            found.append(Reading(how, placed, _used({*placed, *placed.values()}, renames)))
    return sorted(found, key=lambda one: -len(one.places))


def _used(names: Iterable[str], renames: Sequence[Rename]) -> tuple[Rename, ...]:
    used = set()
    for name in names:
        for rename in renames:
            before, name = name, rename(name)
            if name != before:
                used.add(rename)
    return tuple(rename for rename in renames if rename in used)


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
