"""Lists of modules that are not quantised, as transformers reads them.

An entry means a module where it matches the start of its name as a regular expression, up to a dot, or is the end of
it (transformers 5.23, `quantizers/quantizers_utils.py: should_convert_module`). If a list is given, the head is no
longer left out by itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from ..errors import NotSupported, SurgeryError, listed, series
from ..names import natural
from ..patterns.rule import Rule, rule_of, rule_or_none
from .scheme import Quantised, Source, module_of

HEAD = "lm_head"
MANY = 256
PLAIN = re.compile(r"[\w.-]+", re.ASCII)
ALONE = re.compile(r"\(\?|\\\d|^[^\w^]|[^\w.$*+?)\]}]$|[\[\](){}|\\]")  # what could mean another thing beside others


def matches(entry: str, module: str) -> bool:
    """Whether an entry means the module."""
    rule = _rule(entry)
    return (rule is not None and rule.match(module)) or module.endswith(entry)


def _rule(entry: str) -> Rule | None:
    """The entry as an expression, where it is one. Raises SurgeryError for one that may take forever."""
    return rule_or_none(rf"(?:{entry})(?:(?<=\.)|(?=\.|$))") if rule_or_none(entry) else None


def skipped(entries: Iterable[str], module: str) -> bool:
    """Whether one of them does."""
    return skipping(tuple(entries))(module)


@lru_cache(8)
def skipping(entries: tuple[str, ...]) -> Callable[[str], bool]:
    """`matches` of any of the entries, in a time that hardly depends on how many there are. In a list of more than
    `MANY`, a dot of a plain name is a dot.
    """
    names = {entry for entry in entries if len(entries) > MANY and PLAIN.fullmatch(entry)}
    odd = [entry for entry in entries if entry not in names and ALONE.search(entry)]
    rest = [entry for entry in entries if entry not in names and entry not in odd]
    union = rule_of(rf"(?:{'|'.join(f'(?:{entry})' for entry in rest)})(?:(?<=\.)|(?=\.|$))") if rest else None
    ends = tuple(rest)

    def rule(module: str) -> bool:
        if (union and union.match(module)) or module.endswith(ends) or any(matches(entry, module) for entry in odd):
            return True
        cuts = [i for i, sign in enumerate(module) if sign == "."]
        starts = {module[:end] for cut in (*cuts, len(module)) for end in (cut, cut + 1)}
        return bool(names) and (not names.isdisjoint(starts) or any(module[i:] in names for i in range(len(module))))

    return rule


def check_listed(source: Source, key: str, found: Mapping[str, Quantised]) -> None:
    """Raise FormatError where the list that is called `key` names modules that are quantised."""
    entries = source.said.get(key) or []
    if not isinstance(entries, list):
        raise source.broken(f"`{key}` is {entries!r}, and no list of modules", [key])
    names = [str(entry) for entry in entries]
    try:
        listed_here = skipping(tuple(names))
    except SurgeryError as error:
        raise source.broken(f"`{key}` has an entry that is not read: {error.what}", [key]) from error
    if wrong := [one.codes for weight, one in found.items() if listed_here(module_of(weight))]:
        raise source.broken(f"`{key}` names modules as not quantised that have codes", wrong)


def extended(said: Mapping[str, Any], key: str, modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """What is said, with `modules` in the list that is called `key`; with the head, unless that is `quantised`."""
    there = said.get(key)
    before = [str(entry) for entry in there] if isinstance(there, list) else []
    head = [] if there is not None or HEAD in quantised else [HEAD]
    was = skipping(tuple(before))
    wanted = [module for module in sorted(modules, key=natural) if not was(module)]
    entries = list(dict.fromkeys([*before, *head, *wanted]))
    now = skipping(tuple(entries))
    if caught := [one for one in quantised if now(one) and not was(one)]:
        raise NotSupported(
            "loaders would take modules that are quantised for ones that are not, by names of those",
            where=[f"{key}: {series(listed(wanted))}", *listed(caught)],
            help="write all of it in 16 bits: --dequantize; or keep the codes, at a price: --requantize",
        )
    return {**said, key: entries}
