"""Rules that make small tensors, by name."""

from __future__ import annotations

from surgery.evaluation.rules import FAMILIES, RULES


def test_no_two_rules_have_one_name() -> None:
    """Else one kind of adapter would be made by another one's rule."""
    assert len(RULES) == sum(map(len, FAMILIES))
