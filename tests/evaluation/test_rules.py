"""The rules by which small tensors are made: each name is one rule's."""

from __future__ import annotations

from collections import Counter
from importlib import import_module
from pkgutil import iter_modules

from surgery.evaluation import rules


def test_no_two_rules_have_one_name() -> None:
    families = [import_module(f"{rules.__name__}.{one.name}") for one in iter_modules(rules.__path__)]
    names = Counter(name for family in families for name in family.RULES)
    assert set(names) == set(rules.RULES) and not [name for name, count in names.items() if count > 1]
