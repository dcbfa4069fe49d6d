"""A stale index is named as one, and written anew beside shards that stay as they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from conftest import hashes
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

INDEX = "model.safetensors.index.json"


@pytest.fixture
def stale(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """A sharded checkpoint whose index names shards of another count, as they were before they were sharded anew."""
    surgery.write(surgery.open_checkpoint(saved("llama", shard="60KB")), tmp_path / "in")
    index = json.loads((tmp_path / "in" / INDEX).read_text())
    count = len(set(index["weight_map"].values()))
    index["weight_map"] = {
        name: shard.replace(f"of-{count:05}", "of-00099") for name, shard in index["weight_map"].items()
    }
    index["metadata"] = {"total_size": 1, "note": "mine"}
    (tmp_path / "in" / INDEX).write_text(json.dumps(index))
    return tmp_path / "in"


def test_what_is_stale_is_named(stale: Path) -> None:
    with pytest.raises(surgery.FormatError) as caught:
        surgery.open_checkpoint(stale)
    assert "the index is stale" in str(caught.value.help)
    assert f"surgery reindex {stale}" in str(caught.value.help) and f"or remove {INDEX}" in str(caught.value.help)
    (stale / INDEX).unlink()
    assert surgery.open_checkpoint(stale).tensors


def test_the_index_is_right_afterwards(stale: Path, saved: Callable[..., Path]) -> None:
    before = hashes(stale)
    result = CliRunner().invoke(app, ["reindex", str(stale)])
    assert result.exit_code == 0, result.output
    after = hashes(stale)
    assert {n for n in before if before[n] != after.get(n)} == {INDEX} and after.keys() == before.keys()
    right = json.loads((saved("llama", shard="60KB") / INDEX).read_text())
    now = json.loads((stale / INDEX).read_text())
    assert now["weight_map"] == right["weight_map"]
    assert now["metadata"] == {"total_size": right["metadata"]["total_size"], "note": "mine"}
    mine, theirs = (
        transformers.AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (stale, saved("llama", shard="60KB"))
    )
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)
    assert not surgery.reindex(stale).changed


def test_an_index_that_is_a_link_is_replaced_and_not_written_through(stale: Path) -> None:
    (stale / INDEX).rename(stale / "other.json")
    (stale / INDEX).symlink_to("other.json")
    before = (stale / "other.json").read_bytes()
    assert surgery.reindex(stale / INDEX).changed
    assert not (stale / INDEX).is_symlink() and (stale / "other.json").read_bytes() == before


@pytest.mark.parametrize("harm", ["missing", "twice"])
def test_what_is_not_all_there_is_refused(stale: Path, harm: str) -> None:
    shard = sorted(stale.glob("*.safetensors"))[0]
    if harm == "missing":
        shard.unlink()
    else:
        (stale / "copy.safetensors").write_bytes(shard.read_bytes())
    before = hashes(stale)
    with pytest.raises(surgery.NotACheckpoint, match="do not hold each tensor of the index once"):
        surgery.reindex(stale)
    with pytest.raises(surgery.FormatError) as caught:
        surgery.open_checkpoint(stale)
    assert caught.value.help == "the download is incomplete; fetch the missing files"
    assert hashes(stale) == before and not [n for n in os.listdir(stale) if n.startswith(".surgery-")]


def test_weights_are_no_index(stale: Path) -> None:
    with pytest.raises(surgery.NotACheckpoint, match="no index is here"):
        surgery.reindex(next(stale.glob("*.safetensors")))
