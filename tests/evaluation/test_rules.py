"""Rules with names: each family's file has its own."""

from __future__ import annotations

from surgery.evaluation import rules


def test_no_two_families_have_a_rule_of_one_name() -> None:
    families = [getattr(rules, name) for name in dir(rules) if hasattr(getattr(rules, name), "RULES")]
    assert len(families) >= 8
    assert sum(len(family.RULES) for family in families) == len(rules.RULES)
