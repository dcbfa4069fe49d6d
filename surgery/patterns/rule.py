"""An expression as it is used on names: one that may take forever is refused before any name is tried.

`re` tries one way after another. Where names and expression allow so many that this would take long, the question
whether it matches is asked in another way, and one for what it matched is refused.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from importlib import import_module
from math import comb

from ..errors import SurgeryError
from .matching import Ways, ways_of
from .measuring import measured

LONGEST = 10_000_000  # characters that a name may become
FEW, MANY = 1_000_000, 100_000_000  # ways that `re` tries at once, and that it tries where nothing else does


class Rule:
    """A regular expression on names, with the methods of `re.Pattern`. Each raises SurgeryError rather than take
    longer than some seconds on a name.
    """

    def __init__(self, pattern: str, flags: int = 0) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what a later Python may take for something else
                self._rule = re.compile(pattern, flags)
            nested, self._parts = measured(import_module("re._parser").parse(pattern, flags))
        except (re.error, RecursionError, OverflowError, MemoryError) as error:
            raise NoExpression(
                f"`{shortened(pattern)}` is not a regular expression: {error}",
                help="a literal dot is written \\. and a literal ( is \\(",
            ) from error
        if nested:
            raise SurgeryError(
                f"`{shortened(pattern)}` may take forever: it repeats what can be matched in more than one way",
                help="repeat what has one way: ([^.]+\\.)* and not (.*\\.)*",
            )
        self.pattern, self._flags = pattern, flags

    def fullmatch(self, name: str) -> bool:
        """Whether it matches the whole name."""
        ways = self._ways(name, 0)
        return bool(self._rule.fullmatch(name)) if ways is None else ways.fullmatch(name)

    def match(self, name: str) -> bool:
        """Whether it matches the begin of the name."""
        ways = self._ways(name, 0)
        return bool(self._rule.match(name)) if ways is None else ways.match(name)

    def search(self, name: str) -> bool:
        """Whether it occurs in the name."""
        ways = self._ways(name, 1)
        return bool(self._rule.search(name)) if ways is None else ways.search(name)

    def sub(self, replacement: str, name: str) -> str:
        """The name with the replacement wherever it occurs."""
        self._check(name, 1)
        if (len(name) + 1) * (len(replacement) + 1) > LONGEST:
            raise SurgeryError(
                f"`{shortened(replacement)}` in the place of `{shortened(self.pattern)}` makes names too long",
                where=[f"{shortened(name)}: {len(name)} characters"],
                help="no tensor needs so long a name: say a shorter one",
            )
        return self._rule.sub(replacement, name)

    def _ways(self, name: str, more: int) -> Ways | None:
        """What answers in the place of `re`; None where that is quick enough."""
        if comb(len(name) + self._parts + more, self._parts + more) <= FEW:
            return None
        ways = ways_of(self.pattern, self._flags)
        if ways is None:
            self._check(name, more)
        return ways

    def _check(self, name: str, more: int) -> None:
        """Raise SurgeryError for a name on which `re` may take too long."""
        if comb(len(name) + self._parts + more, self._parts + more) > MANY:
            raise SurgeryError(
                f"`{shortened(self.pattern)}` takes too long on a name of {len(name)} characters",
                where=[shortened(name)],
                help=f"{self._parts} parts of it match anything of any length: say some of them exactly",
            )


def shortened(text: str) -> str:
    """A text for a message."""
    return text if len(text) <= 200 else f"{text[:200]}…"


class NoExpression(SurgeryError):
    """A text that is no regular expression."""


@lru_cache(256)
def rule_or_none(text: str) -> Rule | None:
    """The expression that a text is; None where it is none. Raises SurgeryError for one that may take forever."""
    try:
        return Rule(text)
    except NoExpression:
        return None


@lru_cache(256)
def rule_of(pattern: str, flags: int = 0) -> Rule:
    """The expression, or a SurgeryError that says what is wrong with it."""
    return Rule(pattern, flags)
