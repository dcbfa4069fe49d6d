"""A short run of `torch_fuzz.py`: no other error than surgery's, none that takes long, values as torch reads."""

from __future__ import annotations

from torch_fuzz import fuzz


def test_what_is_changed_is_read_as_it_says_or_refused() -> None:
    found = fuzz(3000, seed=1)
    assert [said for one in found.values() for said in one.wrong] == []
    assert all(one.read and one.refused for one in found.values())
    assert sum(one.compared for one in found.values()) > 30
