"""Distributed checkpoints, written by real ranks: each tensor is what was saved, whole."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hostile.distributed import BROKEN, changed
from safetensors.torch import load_file

import surgery
from surgery.errors import SurgeryError


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_what_ranks_saved_together_is_whole_again(ranks: int, tmp_path: Path) -> None:
    code = [sys.executable, str(Path(__file__).with_name("write_distributed.py")), str(tmp_path), str(ranks)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    wanted = torch.load(tmp_path / "whole.pt")
    notes = surgery.open_checkpoint(tmp_path / "dcp").notes
    assert any("optimizer" in note and "step" in note for note in notes)
    for form in ("dcp", "spread", "ranks"):
        surgery.write(surgery.open_checkpoint(tmp_path / form), tmp_path / f"{form}-out")
        held = load_file(tmp_path / f"{form}-out/model.safetensors")
        assert held.keys() == wanted.keys()
        assert all(torch.equal(held[name], wanted[name]) for name in wanted), form
    # one rank's file alone, or without another, is no model
    with pytest.raises(SurgeryError, match="not read alone"):
        surgery.open_checkpoint(tmp_path / f"ranks/model_world_size_{ranks}_rank_0.pt")
    (tmp_path / f"ranks/model_world_size_{ranks}_rank_1.pt").unlink()
    with pytest.raises(SurgeryError, match=f"not the files of {ranks} ranks"):
        surgery.open_checkpoint(tmp_path / "ranks")
    next((tmp_path / "spread").glob("shard-00001*")).unlink()
    with pytest.raises(SurgeryError, match="make no"):
        surgery.open_checkpoint(tmp_path / "spread")


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A checkpoint of one process."""
    dcp.save(
        {"model": {"a": torch.arange(6.0), "b": torch.ones(2, 3).t()}}, checkpoint_id=tmp_path / "dcp", no_dist=True
    )
    return tmp_path / "dcp"


def test_of_one_process(one: Path) -> None:
    made = surgery.open_checkpoint(one)
    assert torch.equal(made.load("a"), torch.arange(6.0)) and made.load("b").shape == (3, 2)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ones_are_refused_by_name(name: str, one: Path) -> None:
    change, what = BROKEN[name]
    changed(one, change)
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(one)
    assert what in str(caught.value) and str(one) in str(caught.value)


def test_a_rank_s_file_that_is_missing(one: Path) -> None:
    next(one.glob("*.distcp")).rename(one / "__9_9.distcp")
    with pytest.raises(SurgeryError, match="is not there"):
        surgery.open_checkpoint(one)
    (one / "__9_9.distcp").unlink()
    with pytest.raises(SurgeryError, match="is not there"):
        surgery.open_checkpoint(one)


def test_metadata_that_would_run_is_only_read(one: Path) -> None:
    canary = one / "canary"

    class Runs:
        def __reduce__(self) -> Any:
            return Path.touch, (canary,)

    (one / ".metadata").write_bytes(pickle.dumps(Runs()))
    with pytest.raises(SurgeryError):
        surgery.open_checkpoint(one)
    assert not canary.exists()


def test_megatron_s_are_torch_s_with_two_files_more(tmp_path: Path) -> None:
    folder, layers = tmp_path / "in", torch.randn(3, 4, 6)
    state = {"decoder.layers.w": layers, "optimizer.state.exp_avg.decoder.layers.w": torch.zeros(3, 4, 6)}
    dcp.save({**state, "chained_0.optimizer.state.exp_avg.x": torch.ones(2)}, checkpoint_id=folder, no_dist=True)
    torch.save({"args": {"tp": 2}, "iteration": 5}, folder / "common.pt")
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    made = surgery.open_checkpoint(folder)
    assert list(made.tensors) == ["decoder.layers.w"] and torch.equal(made.load("decoder.layers.w"), layers)
    assert any("Megatron's" in note for note in made.notes) and any("optimizer.state" in note for note in made.notes)
    surgery.write(made, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".surgery", "model.safetensors"}
    (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}')
    (folder / ".metadata").unlink()
    with pytest.raises(SurgeryError, match="backend zarr is not read"):
        surgery.open_checkpoint(folder)
