"""Whether a part of a regular expression that is repeated can be matched in more than one way: then `re` may try all of
them, which are as many as there are atoms for names of some length.

By the positions that may follow each other in it, as Glushkov counts them: where two that follow one, or one that
follows in two ways, take the same character, there is more than one way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import chain, combinations, product
from typing import Any, NamedTuple

CHARACTERS = tuple(map(chr, range(256)))
MOST = 300  # positions that are compared with each other


class _Span(NamedTuple):
    """What a part may be: nothing at all, and the positions that it may begin and end with."""

    empty: bool
    first: list[int]
    last: list[int]


class _Found:
    """The characters of each position, and which may follow which, once for each way."""

    def __init__(self, alone: Callable[[Any, Any], re.Pattern[str]]) -> None:
        self.alone = alone
        self.characters: list[frozenset[str]] = []
        self.edges: dict[int, list[int]] = {}

    def one(self, kind: Any, held: Any) -> _Span:
        rule, number = self.alone(kind, held), len(self.characters)
        if number > MOST:
            raise LookupError(number)
        self.characters.append(frozenset(filter(rule.match, CHARACTERS)))
        return _Span(False, [number], [number])

    def link(self, last: list[int], first: list[int]) -> None:
        for one, other in product(last, first):
            self.edges.setdefault(one, []).append(other)

    def sequence(self, parsed: Any) -> _Span:
        made = _Span(True, [], [])
        for kind, held in parsed:
            one = self.part(str(kind), kind, held)
            self.link(made.last, one.first)
            made = _Span(
                made.empty and one.empty,
                made.first + (one.first if made.empty else []),
                one.last + (made.last if one.empty else []),
            )
        return made

    def part(self, name: str, kind: Any, held: Any) -> _Span:
        """Raises LookupError for what hangs on more than the next character, or is nothing in several ways."""
        match name:
            case "MAX_REPEAT" | "MIN_REPEAT":
                inner = self.sequence(held[2])
                if int(held[1]) > 1 and inner.empty:
                    raise LookupError(name)
                if int(held[1]) > 1:
                    self.link(inner.last, inner.first)
                return _Span(inner.empty or not held[0], inner.first, inner.last)
            case "SUBPATTERN" if not held[1] and not held[2]:
                return self.sequence(held[3])
            case "BRANCH":
                found = [self.sequence(branch) for branch in held[1]]
                if sum(f.empty for f in found) > 1:
                    raise LookupError(name)
                first, last = chain.from_iterable(f.first for f in found), chain.from_iterable(f.last for f in found)
                return _Span(any(f.empty for f in found), [*first], [*last])
            case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY" | "CATEGORY":
                return self.one(kind, held)
        raise LookupError(name)

    def clash(self, places: list[int]) -> bool:
        """Whether two of them take the same character."""
        return any(self.characters[one] & self.characters[other] for one, other in combinations(places, 2))


def is_ambiguous(repeated: Any, alone: Callable[[Any, Any], re.Pattern[str]]) -> bool:
    """Whether the parsed part, repeated without end, has more than one way for some name; `alone` makes an expression
    of a single part.
    """
    found = _Found(alone)
    try:
        whole = found.sequence(repeated)
    except LookupError:
        return True
    found.link(whole.last, whole.first)
    return whole.empty or found.clash(whole.first) or any(map(found.clash, found.edges.values()))
