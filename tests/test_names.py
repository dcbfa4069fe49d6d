"""Laws of selecting, sorting and rewriting names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.checkpoint import Checkpoint
from surgery.errors import NothingMatched, PlanError, SurgeryError
from surgery.lazy.dtypes import F32
from surgery.lazy.tensor import File, Stored
from surgery.names import compiled, natural, select
from surgery.surgeries.rename import drop, rename, renamed

LAYERS = [f"model.layers.{i}.self_attn.{part}.weight" for i in range(12) for part in ("q_proj", "v_proj")]
NAMES = ["lm_head.weight", "model.embed_tokens.weight", *LAYERS, "model.norm.weight"]

# Natural order


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), max_size=8), st.text(max_size=3), st.text(max_size=3))
def test_numbers_sort_as_numbers(numbers: list[int], before: str, after: str) -> None:
    before, after = (re.sub(r"\d", "", text) for text in (before, after))
    names = [f"{before}{n}{after}" for n in numbers]
    assert sorted(names, key=natural) == [f"{before}{n}{after}" for n in sorted(numbers)]


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("a.0129²٣"), max_size=6), max_size=6, unique=True))
def test_every_name_has_a_place(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural)) == sorted(names)


def test_layer_2_is_before_layer_10() -> None:
    assert sorted(["h.10.b", "h.2.b", "h.2.a", "h", "2", "h.02.a"], key=natural) == [
        "2",
        "h",
        "h.2.a",
        "h.02.a",
        "h.2.b",
        "h.10.b",
    ]


def test_more_digits_than_python_reads() -> None:
    assert sorted(["x" + "2" * 6000, "x1" + "0" * 6000, "x3"], key=natural)[0] == "x3"


# Select


@settings(deadline=None)
@given(st.lists(st.text("ab.1", min_size=1, max_size=4), min_size=1, max_size=8, unique=True), st.data())
def test_a_pattern_matches_whole_names(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    assert select(names, re.escape(name)) == [name]
    assert select(names, f"(?:{re.escape(name)}).*") == sorted((n for n in names if n.startswith(name)), key=natural)


def test_selection_is_in_natural_order() -> None:
    assert select(reversed(NAMES), r"model\.layers\..*q_proj\.weight") == LAYERS[::2]
    assert select(NAMES, r"model\.layers\.1\..*") == LAYERS[2:4]


@pytest.mark.parametrize(
    ("pattern", "help"),
    [
        (
            r"layers\.1\.",
            r"it occurs inside 2 names, such as model.layers.1.self_attn.q_proj.weight; try '.*layers\.1\..*'",
        ),
        ("lm_haed.weight", "the nearest names are lm_head.weight"),
        (r"model\.norm\.wieght", "the nearest names are model.norm.weight, "),
        ("#", "`surgery inspect --tensors '.*'` lists the names"),
    ],
)
def test_nothing_matched(pattern: str, help: str) -> None:
    with pytest.raises(NothingMatched) as caught:
        select(NAMES, pattern)
    assert caught.value.what == f"no tensor's whole name matches `{pattern}`"
    assert (caught.value.help or "").startswith(help)


def test_nearest_among_very_many() -> None:
    names = [f"model.layers.{i}.mlp.experts.{j}.down_proj.weight" for i in range(60) for j in range(128)]
    with pytest.raises(NothingMatched) as caught:
        select(names, "model.layers.3.mlp.expert.7.down_proj.weight")
    assert "model.layers.3.mlp.experts.7.down_proj.weight" in (caught.value.help or "")


@pytest.mark.parametrize("pattern", ["(", "[a", "*", "(?P<x"])
def test_no_regular_expression(pattern: str) -> None:
    with pytest.raises(SurgeryError) as caught:
        compiled(pattern)
    assert caught.value.what.startswith(f"`{pattern}` is not a regular expression: ")
    assert caught.value.help == "a literal dot is written \\. and a literal ( is \\("


# Rewrite


def test_rules_apply_in_turn_wherever_they_occur() -> None:
    rules = [(r"^model\.", "decoder."), (r"layers\.(\d+)", r"h.\1"), ("decoder", "transformer")]
    new = renamed(NAMES, rules)
    assert list(new) == NAMES
    assert new["model.layers.10.self_attn.q_proj.weight"] == "transformer.h.10.self_attn.q_proj.weight"
    assert new["lm_head.weight"] == "lm_head.weight"


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1), min_size=1, unique=True), st.text("xyz"))
def test_a_prefix_and_back_is_the_identity(names: list[str], prefix: str) -> None:
    there = renamed(names, [("^", prefix)])
    assert there == {n: prefix + n for n in names}
    assert renamed(list(there.values()), [(f"^{prefix}", "")]) == {prefix + n: n for n in names}


def test_a_rule_that_occurs_nowhere() -> None:
    with pytest.raises(NothingMatched) as caught:
        renamed(NAMES, [("^model", "m"), (r"^model\.", "")])
    assert caught.value.what == r"`^model\.` occurs in no name"
    assert caught.value.where == (
        "names are such as lm_head.weight, m.embed_tokens.weight, m.layers.0.self_attn.q_proj.weight, (+24 more)",
    )
    assert caught.value.help == "a literal dot is written \\. ; `surgery inspect --tensors '.*'` lists the names"


@pytest.mark.parametrize("replacement", [r"\1", r"\g<x>", r"\q"])
def test_no_replacement(replacement: str) -> None:
    with pytest.raises(NothingMatched) as caught:
        renamed(NAMES, [("model", replacement)])
    assert caught.value.what.startswith(f"`{replacement}` is no replacement for `model`: ")


def test_a_name_cannot_be_empty() -> None:
    with pytest.raises(PlanError, match="a tensor would lose its whole name") as caught:
        renamed(NAMES, [(r"lm_head\.weight|^model\.norm\.weight", "")])
    assert caught.value.where == ("lm_head.weight", "model.norm.weight")


def test_names_that_collide() -> None:
    tensors = {name: Stored(F32, (1,), File("x", 8, 0), at) for at, name in enumerate(["a.1", "a.2", "b"])}
    checkpoint = Checkpoint("x", tensors, dict.fromkeys(tensors, "x"), {}, {}, ())
    with pytest.raises(PlanError) as caught:
        rename(checkpoint, [(r"\.\d", "")])
    assert caught.value.what == "two tensors would get one name"
    assert caught.value.where == ("a.1 -> a", "a.2 -> a")
    assert caught.value.help == "make the pattern more precise, or drop one of them first"


# Drop


class Counted(str):
    """A name that counts how often one of its kind is hashed."""

    hashed = 0

    def __hash__(self) -> int:
        Counted.hashed += 1
        return super().__hash__()


@pytest.mark.parametrize("pattern", [r"t\..*", r"t\.\d*[05]", r"t\.7"])
def test_the_work_of_drop_grows_with_the_names_and_no_faster(pattern: str) -> None:
    def hashed(count: int) -> int:
        tensors = {Counted(f"t.{i}"): Stored(F32, (1,), File("x", 8, 0), i) for i in range(count)}
        checkpoint = Checkpoint("x", tensors, dict.fromkeys(tensors, "x"), {}, {}, ())
        Counted.hashed = 0
        left = drop(checkpoint, pattern)
        assert len(left.tensors) + len(left.dropped) == count
        assert left.tensors.keys() == left.weight_map.keys()
        return Counted.hashed

    assert hashed(400) <= 4.5 * hashed(100)
