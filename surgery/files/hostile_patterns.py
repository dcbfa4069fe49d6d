"""Regular expressions that an adapter brings along: those that may take forever are refused before any is tried.

A match takes time that grows with a power of the name's length for each `.*` that follows another, and without bound
where what is repeated can itself be matched in more than one way.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from ..errors import AdapterError
from ..patterns.matching import is_bounded
from ..patterns.measuring import measured

MOST = 6  # that follow each other, or lie in branches
LONGEST, ALL = 20_000, 50_000  # characters of an expression, and of all that are more than names
_NAME = re.compile(r"[\w.-]*")
_KEYS = ("target_modules", "exclude_modules", "feedforward_modules", "layers_pattern", "target_parameters")
_TABLES = ("rank_pattern", "alpha_pattern", "lambda_pattern", "block_size_pattern", "n_frequency_pattern")
_TIP = "name the modules in a list, in adapter_config.json, each as the model calls it"
# What PEFT puts around a pattern, before it is compiled.
_AROUND = {**dict.fromkeys(_TABLES, r"(.*\.)?({})$"), "layers_pattern": r".*\.{}\.(\d+)\."}


def check_patterns(config: Mapping[str, Any], where: str) -> None:
    """Raise AdapterError for a regular expression in adapter_config.json that is none, or that may take forever."""
    room = ALL
    for key, said in _patterns(config):
        room -= 0 if _NAME.fullmatch(said) else len(said)
        if len(said) > LONGEST or room < 0:
            what = f"regular expressions of more than {LONGEST if len(said) > LONGEST else ALL} characters"
            raise AdapterError(f"{key} has {what}", where=[where, said[:200]], help=_TIP)
        if what := _wrong(said, _AROUND.get(key, "{}")):
            raise AdapterError(f"{key} has a regular expression that {what}", where=[where, said[:200]], help=_TIP)


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
        nested, count = measured(parsed)
    except Exception as error:  # re.error, and what its parser makes of nonsense
        return f"is none: {error}"
    if nested:
        return "may take forever: it repeats what can be matched in more than one way"
    if not is_bounded(whole):
        return "may take forever: what it repeats hangs on what it matched before"
    return f"may take forever: {count} parts of it match anything of any length" if count > MOST else ""
