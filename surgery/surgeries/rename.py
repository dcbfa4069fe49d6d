"""Rename tensors, leave some out, or all but some."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, PlanError, listed
from ..lazy.dropped import both
from ..names import compiled, natural, select
from ..quantization.kept_whole import check_dropped, renamed_whole
from ..step import Option, step
from .header_ties import along

Rule = tuple[str, str]


@step
def rename(
    checkpoint: Checkpoint,
    rules: Annotated[
        Sequence[Rule],
        Option("Rewrite names, wherever REGEX occurs; may be given often.", "REGEX=REPLACEMENT", ("--map",)),
    ],
) -> Checkpoint:
    r"""Rewrite tensor names, wherever a pattern occurs in them.

        rename(checkpoint, [(r"^transformer\.", "model.")])

    Each rule (regular expression, replacement) is applied in turn, wherever it occurs in a name. A tensor keeps its
    shard, and a name that a header ties to it is rewritten as well, as is one in config.json's list of modules that
    are not quantised.
    Raises NothingMatched for a rule that occurs nowhere, PlanError where names collide, or where codes
    would lose what belongs to them.
    """
    return along(checkpoint, lambda parted: _rename(parted, rules))


def _rename(checkpoint: Checkpoint, rules: Sequence[Rule]) -> Checkpoint:
    new = renamed(list(checkpoint.tensors), rules)
    told = {"surgery": "rename", "rules": [list(r) for r in rules], "renamed": sum(o != n for o, n in new.items())}
    made = checkpoint.with_step(
        told,
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


@step
def drop(
    checkpoint: Checkpoint,
    pattern: Annotated[str, Option("Leave out tensors whose whole name matches.", "REGEX")],
) -> Checkpoint:
    """Leave tensors out, by name.

    Raises NothingMatched where no name matches `pattern` as a whole.
    What a header ties to one that is left out, and does not match, is stored. Raises PlanError where codes would be
    left without what they need, or the reverse.
    """
    return along(checkpoint, lambda parted: _drop(parted, pattern))


def _drop(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    names = select(checkpoint.tensors, pattern)
    return _without(checkpoint, names, {"surgery": "drop", "pattern": pattern, "dropped": names})


@step
def keep(
    checkpoint: Checkpoint,
    pattern: Annotated[str, Option("Keep the tensors whose whole name matches, and no other.", "REGEX")],
) -> Checkpoint:
    r"""Leave out all tensors but some, by name: `drop` the other way round.

        keep(checkpoint, r"model\.vision_tower\..*")

    Raises NothingMatched where none does, PlanError where codes would be left without what they need, or the reverse.
    What a header ties to one that is left out, and matches, is stored.
    """
    return along(checkpoint, lambda parted: _keep(parted, pattern))


def _keep(checkpoint: Checkpoint, pattern: str) -> Checkpoint:
    kept = set(select(checkpoint.tensors, pattern))
    rest = sorted((name for name in checkpoint.tensors if name not in kept), key=natural)
    return _without(checkpoint, rest, {"surgery": "keep", "pattern": pattern, "kept": len(kept), "dropped": rest})


def _without(checkpoint: Checkpoint, names: Sequence[str], done: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint without these tensors, which are dropped by name. Raises PlanError."""
    dropped = {name: checkpoint.tensors[name] for name in names}
    check_dropped(checkpoint, dropped)
    return checkpoint.with_step(
        done,
        tensors={n: t for n, t in checkpoint.tensors.items() if n not in dropped},
        weight_map={n: s for n, s in checkpoint.weight_map.items() if n not in dropped},
        dropped=both(checkpoint.dropped, dropped),
    )
