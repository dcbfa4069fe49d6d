"""Whether names match: as Python's `re` says, and in no time, whatever the expression."""

from __future__ import annotations

import re
import time

import pytest
from expressions import HOSTILE, USUAL
from hypothesis import given
from hypothesis import strategies as st

from surgery.errors import AdapterError
from surgery.patterns.ambiguity import is_ambiguous
from surgery.patterns.matching import _compiled, _matched, _parsed, alone, end_matches, fullmatch

NAMES = [
    "",
    "lm_head",
    "model.layers.0.self_attn.q_proj",
    "model.layers.11.mlp.down_proj",
    "visual.blocks.3.attn.qkv",
    "a" * 60,
    "a" * 60 + "!",
    "aab.ab.b",
]
ATOMS = st.sampled_from([*"ab.", r"\.", r"\w", "[^.]", "[ab]", r"\d", "^", "$", r"\b"])


def _joined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3).map("".join)
    return st.one_of(
        several,
        several.map(lambda one: f"(?:{one})*"),
        several.map(lambda one: f"({one})+?"),
        several.map(lambda one: f"(?:{one}){{1,3}}"),
        several.map(lambda one: f"(?={one})"),
        several.map(lambda one: f"(?!{one})"),
        st.tuples(several, several).map(lambda two: f"(?:{two[0]}|{two[1]})"),
    )


PATTERNS = st.recursive(ATOMS, _joined, max_leaves=6)


@given(PATTERNS, st.text("ab.", max_size=6))
def test_it_says_what_re_says(pattern: str, name: str) -> None:
    try:
        wanted = re.fullmatch(pattern, name) is not None
    except (re.error, OverflowError):
        return
    assert _compiled(pattern) is None or _matched(pattern, name) == wanted
    assert fullmatch(pattern, name) == wanted


@pytest.mark.parametrize("pattern", [*USUAL, r"(?i)MODEL.*PROJ", r".*(?<!lm_head)", r"(?<=a)?b.*", r"(?s:.*)b"])
def test_what_people_write_is_read_as_re_reads_it(pattern: str) -> None:
    for name in NAMES:
        assert _matched(pattern, name) == (re.fullmatch(pattern, name) is not None), name


@pytest.mark.parametrize("pattern", [*HOSTILE, "(a|a)" * 40, "(((a?){0,9}){0,9}){0,9}!", r".*.*.*.*.*x"])
def test_no_expression_takes_long(pattern: str) -> None:
    begun = time.process_time()
    assert [fullmatch(pattern, name) for name in NAMES] and [end_matches(pattern, name) for name in NAMES]
    assert time.process_time() - begun < 2


def test_what_hangs_on_an_earlier_match_is_refused_where_it_would_take_long() -> None:
    assert fullmatch(r"(a)\1", "aa") and not fullmatch(r"(a)\1", "ab")
    with pytest.raises(AdapterError, match="takes too long"):
        fullmatch(r"(.*)(.*)(.*)(.*)\1x", "a" * 90)


@pytest.mark.parametrize(
    ("inner", "several"),
    [
        (r"[^.]+\.", False),
        (r"\.[a-z_]+|\.\d+", False),
        (r"a+", True),
        (r".*\.", True),
        (r"a|ab", False),
        (r"a|a", True),
        (r"a?", True),
        (r"(?:x*)*", True),
        (r"[a-z]+_?", True),
        (r"[a-z]+_", False),
    ],
)
def test_what_can_be_matched_in_several_ways(inner: str, several: bool) -> None:
    assert is_ambiguous(_parsed(inner), lambda kind, held: alone(kind, held, 0)) == several
