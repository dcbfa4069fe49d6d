"""Regular expressions that an adapter brings along: those that may take forever are refused before any is tried.

A match takes time that grows with a power of the name's length for each `.*` that follows another, and without bound
where what is repeated can itself be matched in more than one way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import AdapterError
from .ambiguity import is_ambiguous
from .matching import alone, is_bounded

MANY = 10  # how often is often
MOST = 6  # that follow each other, or lie in branches
_KEYS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "target_parameters")
_TABLES = ("rank_pattern", "alpha_pattern", "lambda_pattern", "block_size_pattern", "n_frequency_pattern")
# What PEFT puts around a pattern, before it is compiled.
_AROUND = {**dict.fromkeys(_TABLES, r"(.*\.)?({})$"), "layers_pattern": r".*\.{}\.(\d+)\."}


def check_patterns(config: Mapping[str, Any], where: str) -> None:
    """Raise AdapterError for a regular expression in adapter_config.json that is none, or that may take forever."""
    for key, said in _patterns(config):
        if what := _wrong(said, _AROUND.get(key, "{}")):
            tip = "name the modules in a list, in adapter_config.json, each as the model calls it"
            raise AdapterError(f"{key} has a regular expression that {what}", where=[where, said[:200]], help=tip)


def _patterns(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in _KEYS:
        said = config.get(key)
        if isinstance(said, str):
            yield key, said
        elif key == "layers_pattern" and isinstance(said, list):
            yield from ((key, one) for one in said if isinstance(one, str))
    for key in _TABLES:
        if isinstance(table := config.get(key), Mapping):
            yield from ((key, one) for one in table)


def _wrong(pattern: str, around: str) -> str:
    """What is wrong with it, for a sentence; "" for nothing."""
    try:
        parsed = import_module("re._parser").parse(pattern)
        re.compile(whole := around.replace("{}", pattern))
        nested, count = _measured(parsed)
    except Exception as error:  # re.error, and what its parser makes of nonsense
        return f"is none: {error}"
    if nested:
        return "may take forever: it repeats what can be matched in more than one way"
    if not is_bounded(whole):
        return "may take forever: what it repeats hangs on what it matched before"
    return f"may take forever: {count} parts of it match anything of any length" if count > MOST else ""


def _measured(parsed: Any) -> tuple[bool, int]:
    """Whether it repeats what has more than one way, and how many parts of it are of any length."""
    nested, count = False, 0
    for kind, held in parsed:
        name = str(kind)
        if "REPEAT" in name:
            least, most, inner = held
            deep, more = _measured(inner)
            often = int(most) >= MANY and most != least
            nested |= deep or (
                often and _varies(inner) and is_ambiguous(inner, partial(alone, flags=parsed.state.flags))
            )
            count += more + often
        elif name == "BRANCH":
            found = [_measured(branch) for branch in held[1]]
            nested |= any(deep for deep, _ in found)
            count += max((more for _, more in found), default=0)
        else:
            for inner in _inside(held):
                deep, more = _measured(inner)
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
