"""Weights that servers fuse when they load, and that must be quantised alike: q, k and v, gate and up, the experts of a
layer. vLLM and SGLang refuse a mixture in one of these.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

from ..models.fused.row import EXPERT
from ..models.fused.tables import TABLE
from .scheme import module_of

MORE = (frozenset({"q_a_proj", "kv_a_proj_with_mqa"}), frozenset({"in_proj_qkvz", "in_proj_ba"}))
EXPERTS = re.compile(r"(?P<layer>.*\bexperts)\.(?:\d+\.)?[^.]+", re.DOTALL)


@cache
def _sets() -> tuple[frozenset[str], ...]:
    """The last names of modules that are parts of one fused module in some family."""
    rows = [frozenset(row.parts.values()) for row in TABLE if row.kind in ("qkv", "kv", "gate_up")]
    return tuple(dict.fromkeys([*(names for names in rows if EXPERT not in "".join(names)), *MORE]))


def with_partners(names: Collection[str], among: Collection[str]) -> set[str]:
    """These weights, and all of `among` that are fused with one of them when they are served."""
    among, stacks = frozenset(among), dict[str, list[str]]()
    for name in among:
        if found := EXPERTS.fullmatch(module_of(name)):
            stacks.setdefault(found["layer"], []).append(name)
    wanted, todo = set(names), list(names)
    while todo:
        name = todo.pop()
        expert = EXPERTS.fullmatch(module_of(name))
        more = {*_siblings(name, among), *(stacks.get(expert["layer"], ()) if expert else ())} - wanted
        wanted |= more
        todo += more
    return wanted


def _siblings(name: str, among: frozenset[str]) -> set[str]:
    module = module_of(name)
    parent, dot, leaf = module.rpartition(".")
    suffix = name.removeprefix(module)
    leaves = {other for names in _sets() if leaf in names for other in names}
    return {f"{parent}{dot}{other}{suffix}" for other in leaves} & among
