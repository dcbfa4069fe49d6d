"""Patterns over tensor names. "Matched nothing" is an error, and lives here.

A pattern is a Python regular expression. To select tensors it must match the *whole* name, so that `layers\\.1\\.` does
not take layer 10 along by accident; to rewrite names (`rename`) it is replaced wherever it occurs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from .errors import NothingMatched, SurgeryError, nearest
from .patterns.rule import Rule, rule_of

PARTS = 1000  # dots in a name
_DIGITS = re.compile(r"(\d+)")


def natural(name: str) -> str:
    """A sort key under which layer 2 comes before layer 10: each number stands behind its length."""
    return _DIGITS.sub(lambda found: chr(48 + len(n := found[0].lstrip("0"))) + n, name)


def check_parts(names: Iterable[str], where: str) -> None:
    """Raise SurgeryError for a name of more parts than modules nest: each beginning of it would be looked up."""
    if deep := next((name for name in names if name.count(".") > PARTS), ""):
        raise SurgeryError(
            f"a tensor's name has {deep.count('.') + 1} parts, and {PARTS + 1} are the most that is merged",
            where=[f"{where}: {deep[:60]}…"],
            help="no module lies so deep: rename it, with surgery rename",
        )


def is_called(name: str, ends: Iterable[str]) -> bool:
    """Whether the name is one of `ends`, or ends in one after a dot: how PEFT looks for modules."""
    return any(name == end or name.endswith(f".{end}") for end in ends)


def compiled(pattern: str) -> Rule:
    """The pattern, or an error that says what is wrong with it, be it that it may take forever."""
    return rule_of(pattern, re.DOTALL)  # a name may hold anything, line breaks too


def select(names: Iterable[str], pattern: str) -> list[str]:
    """The names that `pattern` matches as a whole, in natural order. Raises NothingMatched."""
    names = list(names)
    rule = compiled(pattern)
    found = sorted((n for n in names if rule.fullmatch(n)), key=natural)
    if not found:
        inside = [n for n in names if rule.search(n)]
        if inside:
            tip = f"it occurs inside {len(inside)} names, such as {inside[0]}; try '.*{pattern}.*'"
        else:
            close = nearest(pattern.replace("\\", ""), names)
            tip = (
                "the nearest names are " + ", ".join(close)
                if close
                else "`surgery inspect --tensors '.*'` lists the names"
            )
        raise NothingMatched(f"no tensor's whole name matches `{pattern}`", help=tip)
    return found
