"""Lists of modules that are not quantised: transformers' own reading is the judge."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.quantizers.quantizers_utils import should_convert_module

from surgery.errors import NotSupported
from surgery.quantization.skip_lists import extended, skipped

PARTS = st.sampled_from(["model", "layers", "1", "11", "mlp", "gate", "gate_proj", "lm_head", "visual", "q_proj"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map(".".join)
ENTRIES = st.one_of(NAMES, st.sampled_from([r"model\.layers\.\d+", ".*gate", "layers.*", r"re:.*\.1"]))


@settings(max_examples=500, deadline=None)
@given(st.lists(ENTRIES, max_size=4), NAMES)
def test_a_list_means_what_transformers_reads_in_it(entries: list[str], module: str) -> None:
    assert skipped(entries, module) is not should_convert_module(module, entries)


@settings(max_examples=300, deadline=None)
@given(st.none() | st.lists(NAMES, max_size=3), st.sets(NAMES, max_size=6), st.data())
def test_what_is_added_is_skipped_and_nothing_else(
    before: list[str] | None, all_: set[str], data: st.DataObject
) -> None:
    plain = data.draw(st.sets(st.sampled_from(sorted(all_)))) if all_ else set[str]()
    still = sorted(all_ - plain)
    try:
        said = extended({"key": before}, "key", sorted(plain), still)
    except NotSupported:
        return
    was = before or []
    assert all(skipped(said["key"], module) for module in plain)
    assert all(skipped(said["key"], module) == skipped(was, module) for module in still)


def test_the_head_is_named_where_the_first_list_is_made() -> None:
    assert extended({}, "key", ["a"], ["b"])["key"] == ["lm_head", "a"]
    assert extended({"key": ["x"]}, "key", ["a"], ["b"])["key"] == ["x", "a"]
    assert extended({}, "key", ["a"], ["lm_head"])["key"] == ["a"]


def test_a_name_that_would_catch_others_is_refused() -> None:
    with pytest.raises(NotSupported, match="would take modules that are quantised"):
        extended({}, "key", ["gate"], ["model.layers.1.mlp.gate"])
