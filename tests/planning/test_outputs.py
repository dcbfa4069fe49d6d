"""Laws of outputs' names: a plan whose files would lie outside, on each other or in a folder that is believed is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.names import FAULTS

import surgery
from surgery.checkpoint import Checkpoint
from surgery.errors import DestinationError, PlanError
from surgery.planning.outputs import check_distinct


@pytest.fixture
def base(saved: Callable[..., Path]) -> Checkpoint:
    return surgery.open_checkpoint(saved("llama", shard="60KB"))


def renamed(base: Checkpoint, *names: str) -> Checkpoint:
    """The checkpoint with its first shards called so."""
    shards = sorted(set(base.weight_map.values()))
    new = dict(zip(shards, names, strict=False))
    return replace(
        base,
        weight_map={n: new.get(s, s) for n, s in base.weight_map.items()},
        metadata={new.get(s, s): m for s, m in base.metadata.items()},
    )


def refused(checkpoint: Checkpoint, match: str) -> PlanError:
    with pytest.raises(PlanError, match=match) as caught:
        surgery.plan(checkpoint)
    assert caught.value.help
    return caught.value


NO_PATHS = "outputs would have names that are no paths inside a folder"
NOT_THEIRS = "outputs would lie in a folder that is not theirs"
TWO = "a file and a folder would have the same path"


@pytest.mark.parametrize(("path", "fault"), FAULTS.items())
def test_what_is_no_path_inside_is_refused(base: Checkpoint, path: str, fault: str) -> None:
    """As a carried file, a shard, an index, the stem of shards."""
    line = f"{path}: {fault}"
    assert refused(replace(base, files={**base.files, path: b""}), NO_PATHS).where == (line,)
    assert refused(renamed(base, path), NO_PATHS).where[0] == line
    assert refused(replace(base, index_name=path), NO_PATHS).where == (line,)
    with pytest.raises(PlanError, match=NO_PATHS):
        surgery.plan(replace(base, stem=f"../{path}"), "60KB")


def test_the_record_of_a_shard_may_be_too_long(base: Checkpoint) -> None:
    """`.undo` is added to its name."""
    named = renamed(base, "x" * 251)
    surgery.plan(named)
    assert "251" not in refused(surgery.reversible(named, named), NO_PATHS).what


OURS = [
    ".surgery/undo/a.safetensors.undo.part",
    ".surgery/undo/a.safetensors.undo.new",
    ".surgery/base.undo",
    ".surgery/sent.json",
    ".surgery/parts/made/a.safetensors",
    ".surgery/x",
    ".surgery",
    ".Surgery/x",
    ".git/config",
    ".GIT/hooks/post-checkout",
]


@pytest.mark.parametrize("path", OURS)
def test_nothing_is_put_where_it_would_be_believed(base: Checkpoint, path: str) -> None:
    """As a carried file or a shard, with a record of our own or without."""
    for checkpoint in (replace(base, files={**base.files, path: b""}), renamed(base, "a.safetensors", path)):
        assert path in refused(checkpoint, NOT_THEIRS).where
    if path != ".surgery/base.undo":  # then it is replaced by the record of this run
        named = renamed(base, "a.safetensors", path)
        assert path in refused(surgery.reversible(named, base), NOT_THEIRS).where


@pytest.mark.parametrize("path", [".surgery/manifest.json", ".surgery/undo/model-00001-of-00005.safetensors.undo"])
def test_what_is_ours_is_not_anothers(base: Checkpoint, path: str) -> None:
    refused(replace(base, files={**base.files, path: b""}), NOT_THEIRS)


@pytest.mark.parametrize(
    ("shard", "file"),
    [("a", "a/b"), ("a/b", "a"), ("a/b/c.safetensors", "a/b"), ("config.json/x.safetensors", "tokenizer.json")],
)
def test_a_path_is_a_file_or_a_folder(base: Checkpoint, shard: str, file: str) -> None:
    assert len(refused(replace(renamed(base, shard), files={**base.files, file: b""}), TWO).where) == 1


def test_a_shard_beside_the_part_of_another(base: Checkpoint) -> None:
    """`a` beside `a.part`, and files with names that unfinished ones had once."""
    surgery.plan(
        replace(renamed(base, "a", "a.part", "a.new"), files={**base.files, "scratch.part": b"", "scratch": b""})
    )


def test_an_index_is_nobody_elses_file(base: Checkpoint) -> None:
    named = surgery.plan(replace(base, index_name="model.fp16.index.json"))
    assert "model.fp16.index.json" in named.files
    refused(renamed(base, base.index_name), "a shard and a carried file would have the same path")


def test_where_case_makes_no_difference() -> None:
    check_distinct(["a", "b", "A.txt"], "out")
    with pytest.raises(DestinationError, match="letter case alone") as caught:
        check_distinct(["README.md", "a", "readme.md"], "out")
    assert caught.value.where == ("out", "readme.md, README.md")
