"""Which of a checkpoint's names are one tensor once its class is loaded: from config.json and the names that are
stored; and what headers say of names that no class is known to tie.

transformers 5 ties after it has read the file, for each pair (tied, source) of the class in turn. What is stored has
its own value; a source that is not stored gets that of the first of its tied ones that is; a tied one that is not
stored, the source's. Two that are both stored are tied if they are equal, and stay apart if they are not. Source:
modeling_utils.py `tie_weights`, 5.23.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from .families import Ties, ties
from .header_ties import Metadata, header_families
from .names_v5 import in_memory, renames_of


def tied_families(config: Mapping[str, Any], stored: Collection[str]) -> list[tuple[str, ...]]:
    """The names of each tensor that the class ties, as the files have them: the source first, then the tied, in
    transformers' order.

    Without those of which nothing is stored.
    """
    known = ties(config)
    if known is None:
        return []
    files = _files_of(known, config, stored)
    found = []
    for source in dict.fromkeys(known.others.values()):
        names = [files[name] for name in (source, *(name for name, to in known.others.items() if to == source))]
        if any(name in stored for name in names):
            found.append(tuple(names))
    return found


def all_families(config: Mapping[str, Any], stored: Collection[str], metadata: Metadata) -> list[tuple[str, ...]]:
    """`tied_families`, and those that only the headers name. Raises FormatError where headers contradict each other."""
    known = tied_families(config, stored)
    return known + header_families(metadata, stored, {name for family in known for name in family})


def input_embedding(config: Mapping[str, Any], stored: Collection[str]) -> str:
    """The name, in the files, of the input embedding, where it is not the source of its family; empty where it is."""
    known = ties(config)
    return _files_of(known, config, stored)[known.embedding] if known and known.embedding else ""


def holder_of(names: tuple[str, ...], stored: Collection[str]) -> str:
    """Whose value those of a family that are not stored have once it is loaded."""
    return next(name for name in names if name in stored)


def to_store(names: tuple[str, ...], values: Mapping[str, Any], kept: Collection[str]) -> set[str]:
    """Those of a family that have to be stored, `kept` among them, so that each has its value once it is loaded."""
    found = {name for name in names if name in kept}
    while True:
        given = values[holder_of(names, found)]
        more = {name for name in names if name not in found and values[name] != given}
        if not more:
            return found
        found |= more


def _files_of(known: Ties, config: Mapping[str, Any], stored: Collection[str]) -> dict[str, str]:
    """Name in memory -> name in the files, which may have older ones, or those of the body alone."""
    names = dict.fromkeys([*known.others.values(), *known.others, *([known.embedding] if known.embedding else [])])
    renames = renames_of(config)
    loaded = {in_memory(name, renames): name for name in stored} if renames else {}
    called = {name: name if name in stored else loaded.get(name, name) for name in names}
    stem = next(iter(known.others.values())).partition(".")[0] + "."
    bodies = {name: name.removeprefix(stem) for name in names if name.startswith(stem) and name.count(".") > 1}
    if any(called[name] in stored for name in bodies) or not any(body in stored for body in bodies.values()):
        return called
    return called | bodies
