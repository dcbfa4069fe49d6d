"""Rename tensors, leave some out, or all but some."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, PlanError, listed
from ..names import compiled, natural, select
from ..opened import takes_opened
from ..quantization.kept_whole import check_dropped, renamed_whole
from .header_ties import along

Rule = tuple[str, str]


@takes_opened
def rename(checkpoint: Checkpoint, rules: Sequence[Rule]) -> Checkpoint:
    r"""Rewrite names: each rule (regular expression, replacement) in turn, wherever it occurs in a name.

        rename(checkpoint, [(r"^transformer\.", "model.")])

    A tensor keeps its shard, and a name that a header ties to it is rewritten as well, as is one in config.json's list
    of modules that are not quantised.
    Raises NothingMatched for a rule that occurs nowhere, PlanError where names collide, or where codes
    would lose what belongs to them.
    """
    return along(checkpoint, lambda parted: _rename(parted, rules))


def _rename(checkpoint: Checkpoint, rules: Sequence[Rule]) -> Checkpoint:
    new = renamed(list(checkpoint.tensors), rules)
    step = {"surgery": "rename", "rules": [list(r) for r in rules], "renamed": sum(o != n for o, n in new.items())}
    made = checkpoint.with_step(
        step,
        tensors={new[n]: t for n, t in checkpoint.tensors.items()},
        weight_map={new[n]: s for n, s in checkpoint.weight_map.items()},
    )
    return renamed_whole(checkpoint, made, new, lambda name: rewritten(name, rules))


def rewritten(name: str, rules: Sequence[Rule]) -> str:
    """One name under the rules, in turn."""
    for pattern, replacement in rules:
        name = compiled(pattern).sub(replacement, name)
    return name


def renamed(names: Sequence[str], rules: Sequence[Rule]) -> dict[str, str]:
    """Old name -> new name under the rules, in turn. Raises NothingMatched for a rule that occurs in none, PlanError
    for a name that two would get.
    """
    current = {n: n for n in names}
    for pattern, replacement in rules:
        rule = compiled(pattern)
        if not any(rule.search(n) for n in current.values()):
            raise NothingMatched(
                f"`{pattern}` occurs in no name",
                where=[f"names are such as {', '.join(listed(sorted(current.values()), 3))}"],
                help="a literal dot is written \\. ; `surgery inspect --tensors '.*'` lists the names",
            )
        try:
            current = {old: rule.sub(replacement, name) for old, name in current.items()}
        except (re.error, IndexError) as error:
            raise NothingMatched(f"`{replacement}` is no replacement for `{pattern}`: {error}") from error
        if empty := [old for old, name in current.items() if old and not name]:
            raise PlanError(
                "a tensor would lose its whole name", where=listed(empty), help="make the pattern more precise"
            )
    back: dict[str, str] = {}
    for old, name in current.items():
        if name in back:
            raise PlanError(
                "two tensors would get one name",
                where=[f"{back[name]} -> {name}", f"{old} -> {name}"],
                help="make the pattern more precise, or drop one of them first",
            )
        back[name] = old
    return current


@takes_opened
def drop(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    """Leave out every tensor whose whole name matches `pattern`. Raises NothingMatched where none does.

    What a header ties to one that is left out, and does not match, is stored. Raises PlanError where codes would be
    left without what they need, or the reverse.
    """
    return along(checkpoint, lambda parted: _drop(parted, pattern))


def _drop(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    names = select(checkpoint.tensors, pattern)
    return _without(checkpoint, names, {"surgery": "drop", "pattern": pattern, "dropped": names})


@takes_opened
def keep(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    r"""Leave out every tensor but those whose whole name matches `pattern`: `drop` the other way round.

        keep(checkpoint, r"model\.vision_tower\..*")

    Raises NothingMatched where none does, PlanError where codes would be left without what they need, or the reverse.
    What a header ties to one that is left out, and matches, is stored.
    """
    return along(checkpoint, lambda parted: _keep(parted, pattern))


def _keep(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    kept = set(select(checkpoint.tensors, pattern))
    rest = sorted((name for name in checkpoint.tensors if name not in kept), key=natural)
    return _without(checkpoint, rest, {"surgery": "keep", "pattern": pattern, "kept": len(kept), "dropped": rest})


def _without(checkpoint: Checkpoint, names: Sequence[str], step: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint without these tensors, which are dropped by name. Raises PlanError."""
    dropped = {name: checkpoint.tensors[name] for name in names}
    check_dropped(checkpoint, dropped)
    return checkpoint.with_step(
        step,
        tensors={n: t for n, t in checkpoint.tensors.items() if n not in dropped},
        weight_map={n: s for n, s in checkpoint.weight_map.items() if n not in dropped},
        dropped={**checkpoint.dropped, **dropped},
    )
