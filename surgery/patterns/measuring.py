"""How the time of a match grows: without bound where what is repeated can itself be matched in more than one way, and
with a power of the name's length for each `.*` that follows another.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .ambiguity import is_ambiguous
from .matching import alone

MANY = 10  # how often is often


def measured(parsed: Any) -> tuple[bool, int]:
    """Whether it repeats what has more than one way, and how many parts of it are of any length."""
    nested, count = False, 0
    for kind, held in parsed:
        name = str(kind)
        if "REPEAT" in name:
            least, most, inner = held
            deep, more = measured(inner)
            often = int(most) >= MANY and most != least
            nested |= deep or (
                often and _varies(inner) and is_ambiguous(inner, partial(alone, flags=parsed.state.flags))
            )
            count += more + often
        elif name == "BRANCH":
            found = [measured(branch) for branch in held[1]]
            nested |= any(deep for deep, _ in found)
            count += max((more for _, more in found), default=0)
        else:
            for inner in _inside(held):
                deep, more = measured(inner)
                nested, count = nested or deep, count + more
    return nested, count


def _varies(parsed: Any) -> bool:
    """Whether it may be matched in more than one way: a choice is in it, or a repetition of no one length."""
    for kind, held in parsed:
        if str(kind) == "BRANCH" or ("REPEAT" in str(kind) and held[0] != held[1]):
            return True
        if any(_varies(inner) for inner in ([held[2]] if "REPEAT" in str(kind) else _inside(held))):
            return True
    return False


def _inside(held: Any) -> list[Any]:
    """The expressions within a group or an assertion."""
    parts = held if isinstance(held, tuple) else (held,)
    return [part for part in parts if type(part).__name__ == "SubPattern"]
