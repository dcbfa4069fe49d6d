"""Whether a name matches a regular expression that came along with an adapter, in a time that no expression makes long.

Python's own `re` tries one way after another, and an expression can have more ways than there are atoms: what has few
is left to it. Else each part of the expression is asked once for each place in the name where it may begin, for all
places where it may end: `(a+)+` takes no longer than `a+`. Places are the bits of a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from typing import Any

from ..errors import AdapterError

WAYS = 200_000  # that `re` may try
STEPS = 2_000_000  # that may be taken for one name
LONGEST = 2_000  # characters of an expression
USUAL = 100  # characters of a name
_Ends = Callable[["_Name", int], int]  # the places where a part ends that begins at one, as bits


def fullmatch(pattern: str, name: str) -> bool:
    """Whether the expression matches the whole name. Raises AdapterError for one that takes too long."""
    return bool(rule.fullmatch(name)) if (rule := _plain(pattern, len(name))) else _matched(pattern, name)


def end_matches(pattern: str, name: str) -> bool:
    """Whether the expression matches the name, or all behind one of its dots: as PEFT looks patterns up."""
    return fullmatch(rf"(.*\.)?({pattern})", name)


def is_bounded(pattern: str) -> bool:
    """Whether names are matched by it in short time, whatever they are: it has few ways, or no part that only `re`
    knows.
    """
    return _plain(pattern, USUAL) is not None or _compiled(pattern) is not None


@lru_cache(256)
def _plain(pattern: str, length: int) -> re.Pattern[str] | None:
    """The expression as `re` has it, where that has few ways through a name so long."""
    return re.compile(pattern) if _ways(_parsed(pattern), length) <= WAYS else None


@lru_cache(4096)
def _matched(pattern: str, name: str) -> bool:
    ends = _compiled(pattern)
    if ends is None:
        raise _too_long(pattern)
    return bool(ends(_Name(name, pattern), 0) >> len(name) & 1)


def _too_long(pattern: str) -> AdapterError:
    tip = "name the modules in a list, in adapter_config.json, each as the model calls it"
    return AdapterError("a regular expression of the adapter takes too long", where=[pattern[:200]], help=tip)


class _Name:
    """A name, and what is known of it: where a part ends that begins at a place."""

    def __init__(self, text: str, pattern: str) -> None:
        self.text, self.pattern, self.steps = text, pattern, 0
        self.known: dict[tuple[int, int], int] = {}

    def ends(self, part: _Ends, start: int) -> int:
        key = id(part), start
        if key not in self.known:
            self.steps += 1
            if self.steps > STEPS:
                raise _too_long(self.pattern)
            self.known[key] = part(self, start)
        return self.known[key]

    def from_all(self, part: _Ends, starts: int) -> int:
        found = 0
        while starts:
            low = starts & -starts
            found |= self.ends(part, low.bit_length() - 1)
            starts ^= low
        return found


class Ways:
    """The places of names that an expression leads to from each, however many its ways are."""

    def __init__(self, pattern: str, ends: _Ends) -> None:
        self._pattern, self._ends = pattern, ends

    def fullmatch(self, name: str) -> bool:
        """As of `re`, each of them; raises AdapterError where it takes too long."""
        return bool(self._ends(_Name(name, self._pattern), 0) >> len(name) & 1)

    def match(self, name: str) -> bool:
        """See `fullmatch`."""
        return bool(self._ends(_Name(name, self._pattern), 0))

    def search(self, name: str) -> bool:
        """See `fullmatch`."""
        seen = _Name(name, self._pattern)
        return any(self._ends(seen, start) for start in range(len(name) + 1))


def ways_of(pattern: str, flags: int = 0) -> Ways | None:
    """The expression so; None where a part of it is told by what another one matched."""
    ends = _compiled(pattern, flags)
    return None if ends is None else Ways(pattern, ends)


@lru_cache(256)
def _parsed(pattern: str, flags: int = 0) -> Any:
    return import_module("re._parser").parse(pattern, flags)


@lru_cache(256)
def _compiled(pattern: str, flags: int = 0) -> _Ends | None:
    """The expression as a function of names; None where a part of it is told by what another one matched."""
    if len(pattern) > LONGEST:
        return None
    parsed = _parsed(pattern, flags)
    try:
        return _sequence(parsed, parsed.state.flags)
    except LookupError:
        return None


def _sequence(parsed: Any, flags: int) -> _Ends:
    parts = [_part(kind, held, flags) for kind, held in parsed]

    def ends(name: _Name, start: int) -> int:
        places = 1 << start
        for part in parts:
            places = name.from_all(part, places)
        return places

    return ends


def _part(kind: Any, held: Any, flags: int) -> _Ends:
    """One part of an expression. Raises LookupError for one that depends on others."""
    match str(kind):
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _repeated(_sequence(held[2], flags), int(held[0]), int(held[1]))
        case "SUBPATTERN":
            return _sequence(held[3], (flags | held[1]) & ~held[2])
        case "BRANCH":
            return _either([_sequence(branch, flags) for branch in held[1]])
        case "ASSERT" | "ASSERT_NOT":
            return _asserted(held[0], _sequence(held[1], flags), held[1], wanted=str(kind) == "ASSERT")
        case "AT":
            return _at(alone(kind, held, flags))
        case "LITERAL" | "NOT_LITERAL" | "IN" | "ANY" | "CATEGORY":
            return _one(alone(kind, held, flags))
    raise LookupError(kind)


def alone(kind: Any, held: Any, flags: int) -> re.Pattern[str]:
    """A single part as an expression of its own."""
    parser, compiler = import_module("re._parser"), import_module("re._compiler")
    state = parser.State()
    state.flags = flags
    found: re.Pattern[str] = compiler.compile(parser.SubPattern(state, [(kind, held)]), flags)
    return found


def _one(rule: re.Pattern[str]) -> _Ends:
    return lambda name, start: 1 << start + 1 if rule.match(name.text, start) else 0


def _at(rule: re.Pattern[str]) -> _Ends:
    return lambda name, start: 1 << start if rule.match(name.text, start) else 0


def _either(branches: list[_Ends]) -> _Ends:
    def ends(name: _Name, start: int) -> int:
        found = 0
        for branch in branches:
            found |= name.ends(branch, start)
        return found

    return ends


def _repeated(inner: _Ends, least: int, most: int) -> _Ends:
    """From `least` to `most` times: places that are reached again reach nothing more."""

    def ends(name: _Name, start: int) -> int:
        places, count = 1 << start, 0
        while count < least and places:
            after = name.from_all(inner, places)
            if after == places:  # for ever
                break
            places, count = after, count + 1
        found, front = places, places
        while front and count < most:
            front = name.from_all(inner, front) & ~found
            found, count = found | front, count + 1
        return found

    return ends


def _asserted(direction: int, inner: _Ends, parsed: Any, *, wanted: bool) -> _Ends:
    """What must, or must not, be there before a place or after it; before it, of one length."""
    width = int(parsed.getwidth()[0])

    def ends(name: _Name, start: int) -> int:
        if direction > 0:
            there = bool(name.ends(inner, start))
        else:
            there = start >= width and bool(name.ends(inner, start - width) >> start & 1)
        return 1 << start if there == wanted else 0

    return ends


def _ways(parsed: Any, length: int) -> int:
    """More than the ways in which `re` can try an expression on a name so long."""
    ways = 1
    for kind, held in parsed:
        match str(kind):
            case "MAX_REPEAT" | "MIN_REPEAT" | "POSSESSIVE_REPEAT":
                least, most = int(held[0]), min(int(held[1]), length)
                inner = _ways(held[2], length)
                ways *= (
                    max(1, most - least + 1)
                    if inner == 1
                    else min(inner ** min(max(most, 1), 64) * (most + 1), WAYS + 1)
                )
            case "BRANCH":
                ways *= sum(_ways(branch, length) for branch in held[1])
            case _:
                for one in held if isinstance(held, tuple) else (held,):
                    ways *= _ways(one, length) if type(one).__name__ == "SubPattern" else 1
        ways = min(ways, WAYS + 1)
    return ways
