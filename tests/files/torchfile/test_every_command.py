"""Every command, straight from what torch saved: one file, shards with an index, a distributed checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import hashes
from handmade import write_adapter
from safetensors.torch import load_file
from test_models import held, pickled
from typer.testing import CliRunner

import surgery
from surgery_cli.app import app

Saved = Callable[..., Path]
FORMS = ("one file", "shards", "distributed")
MODULES = {"model.layers.0.self_attn.o_proj": (48, 48), "model.layers.1.self_attn.qkv_proj": (80, 48)}


def surge(*words: object, fails: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == fails, done.output
    return done.output


@pytest.fixture(params=FORMS)
def base(request: pytest.FixtureRequest, saved: Saved, tmp_path: Path) -> Path:
    """A Phi-3 in that form, with its config beside."""
    if request.param != "distributed":
        return pickled(saved("phi3"), tmp_path / "in", 1 if request.param == "one file" else 2)
    tensors = {k: v for file in saved("phi3").glob("*.safetensors") for k, v in load_file(file).items()}
    dcp.save({"model": tensors, "step": 3}, checkpoint_id=tmp_path / "in", no_dist=True)
    (tmp_path / "in/config.json").write_bytes((saved("phi3") / "config.json").read_bytes())
    return tmp_path / "in"


@pytest.fixture
def adapter(saved: Saved, tmp_path: Path) -> Path:
    tensors = surgery.open_checkpoint(saved("phi3")).tensors
    modules = {m: tensors[f"{m}.weight"].shape for m in MODULES}
    return write_adapter(tmp_path / "adapter", {m: (s[0], s[1]) for m, s in modules.items()})


def same(one: Path, other: Path) -> bool:
    a, b = held(one), held(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_the_same_model(base: Path, saved: Saved) -> None:
    """To inspect, diff and verify: names, values, and what the class says."""
    before = hashes(base)
    assert "phi3" in surge("inspect", base) and "fused" in surge("inspect", base)
    assert surgery.diff(base, saved("phi3"), tensors=".*").equal
    (check,) = [one for one in surgery.verify(base, values=True).checks if one.name == "class"]
    assert check.ok and hashes(base) == before


def test_merged_it_is_as_from_safetensors(base: Path, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    surge("merge", base, adapter, "-o", tmp_path / "one")
    surge("merge", saved("phi3"), adapter, "-o", tmp_path / "other")
    assert same(tmp_path / "one", tmp_path / "other")
    surge("verify", tmp_path / "one", "--base", base, "--adapter", adapter)
    surge("verify", tmp_path / "one", "--base", saved("phi3"), "--adapter", adapter)


def test_split_resharded_and_converted_too(base: Path, saved: Saved, tmp_path: Path) -> None:
    for command in (["split"], ["reshard", "--max-shard-size", "40KB"], ["convert", "--as", "llama"]):
        for number, source in enumerate((base, saved("phi3"))):
            surge(command[0], source, *command[1:], "-o", tmp_path / f"{command[0]}{number}")
        assert same(tmp_path / f"{command[0]}0", tmp_path / f"{command[0]}1"), command


def test_a_merge_of_it_is_taken_back(base: Path, adapter: Path, saved: Saved, tmp_path: Path) -> None:
    """By subtraction as it is; byte for byte once it is safetensors, since its own files are not written again."""
    assert "convert-files" in surge("merge", base, adapter, "--reversible", "-o", tmp_path / "merged", fails=1)
    surge("convert-files", base, "-o", tmp_path / "base")
    surge("merge", tmp_path / "base", adapter, "--reversible", "-o", tmp_path / "merged")
    assert not same(tmp_path / "merged", saved("phi3"))
    surge("unmerge", tmp_path / "merged", "-o", tmp_path / "back")
    assert same(tmp_path / "back", tmp_path / "base") and same(tmp_path / "back", saved("phi3"))
    (tmp_path / "pickled").mkdir()
    torch.save(held(tmp_path / "merged"), tmp_path / "pickled/pytorch_model.bin")
    (tmp_path / "pickled/config.json").write_bytes((base / "config.json").read_bytes())
    surge("unmerge", tmp_path / "pickled", adapter, "--approximate", "-o", tmp_path / "near")
    near, wanted = held(tmp_path / "near"), held(saved("phi3"))
    assert all((near[name] - wanted[name]).abs().max() < 1e-5 for name in wanted)
