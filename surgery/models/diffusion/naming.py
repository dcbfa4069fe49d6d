"""Two ways to call the modules of one network: as its authors' code does, and as diffusers does.

A `Pair` says that a module of the one is a module of the other, or that it is several of them, one behind the other
along its rows. A `Naming` is all pairs of one kind of network, found in the modules that a base has; it is read in
both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

NUMBER = "{n}"
ORIGINAL, DIFFUSERS = "original", "diffusers"
TEXT = "text_model."  # which CLIP's modules have in front in some versions of transformers, and not in others


@dataclass(frozen=True, slots=True)
class Pair:
    """A module, or the beginning of the names of some, in the original and in diffusers."""

    original: str
    diffusers: tuple[str, ...]  # several are the parts of the original's rows, in this order
    swapped: bool = False  # the halves of the rows lie the other way round


@dataclass(frozen=True, slots=True)
class Naming:
    """The pairs of one kind of network; `original` and `diffusers` are modules by which it is told, and `kohya` which
    of the two its scripts call modules by.
    """

    name: str
    original: str
    diffusers: str
    pairs: Callable[[Collection[str]], list[Pair]]
    source: str
    kohya: Callable[[Collection[str]], str] = lambda modules: ORIGINAL


def templates(*rows: Pair) -> Callable[[Collection[str]], list[Pair]]:
    """Pairs in which `{n}` is the number of a block, for all numbers that the modules have."""

    def pairs(modules: Collection[str]) -> list[Pair]:
        return [pair for row in rows for pair in _numbered(row, modules)]

    return pairs


def _numbered(row: Pair, modules: Collection[str]) -> Iterator[Pair]:
    if NUMBER not in row.original:
        yield row
        return
    rules = [
        re.compile(re.escape(name).replace(re.escape(NUMBER), r"(\d+)")) for name in (row.original, *row.diffusers)
    ]
    found = {int(hit[1]) for module in modules for rule in rules if (hit := rule.match(module))}
    for number in sorted(found):
        filled = [name.replace(NUMBER, str(number)) for name in (row.original, *row.diffusers)]
        yield Pair(filled[0], tuple(filled[1:]), row.swapped)


def naming_of(modules: Collection[str], namings: Collection[Naming]) -> tuple[Naming | None, str]:
    """The naming of the network, and which of the two the modules have; (None, "") where none is known."""
    bare = {module.removeprefix(TEXT) for module in modules}
    for naming in namings:
        if naming.original in modules:
            return naming, ORIGINAL
        if naming.diffusers in modules or naming.diffusers.removeprefix(TEXT) in bare:
            return naming, DIFFUSERS
    return None, ""
