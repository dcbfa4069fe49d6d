"""Any format that is opened -> safetensors, in one way, with what is left behind named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import NothingMatched
from surgery.planning import sharding
from surgery_cli.app import app

Saved = Callable[..., Path]


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


def surge(*words: object, fails: int = 0) -> str:
    done = CliRunner().invoke(app, [*map(str, words)])
    assert done.exit_code == fails, done.output
    return done.output


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """A folder as a training leaves it: shards, an optimizer's state, a scheduler's, and code."""
    folder.mkdir()
    tensors = {f"layers.{i}.weight": torch.randn(64, 64) for i in range(4)}
    names = [f"pytorch_model-{i + 1:05}-of-00002.bin" for i in range(2)]
    where = {name: names[i // 2] for i, name in enumerate(tensors)}
    for file in names:
        torch.save({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    for file in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        torch.save({"state": torch.ones(3)}, folder / file)
    (folder / "modeling_mine.py").write_text("raise SystemExit\n")
    (folder / "config.json").write_text("{}")
    return tensors


def test_shards_stay_shards_and_the_training_is_left_by_name(tmp_path: Path) -> None:
    tensors = trained(tmp_path / "in")
    said = surge("convert-files", tmp_path / "in", "-o", tmp_path / "out")
    made = held(tmp_path / "out")
    assert made.keys() == tensors.keys() and all(torch.equal(made[name], tensors[name]) for name in tensors)
    shards = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert shards == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["weight_map"]["layers.0.weight"] == shards[0]
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state_0.pth"):
        assert name in said and not (tmp_path / "out" / name).exists()
    assert "a training's state" in said and (tmp_path / "out/modeling_mine.py").exists()
    assert "convert-files: saved by torch" in surge("inspect", tmp_path / "out")


def test_another_layout_where_it_is_asked_for(tmp_path: Path) -> None:
    tensors = trained(tmp_path / "in")
    surge("convert-files", tmp_path / "in", "-o", tmp_path / "out", "--max-shard-size", "20KB")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 4
    surge("reshard", tmp_path / "in", "-o", tmp_path / "one")
    assert (tmp_path / "one/model.safetensors").is_file()
    for out in ("out", "one"):
        assert all(torch.equal(held(tmp_path / out)[name], tensors[name]) for name in tensors)


def test_what_lies_in_pieces_gets_the_hubs_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a single file stays one, whatever its size."""
    monkeypatch.setattr(sharding, "DEFAULT", "20KB")
    tensors = {f"layers.{i}.weight": torch.randn(64, 64) for i in range(3)}
    dcp.save({"model": tensors}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    for number, source in enumerate((tmp_path / "dcp", tmp_path / "pytorch_model.bin")):
        made = surgery.convert_files(surgery.open_checkpoint(source))
        report = surgery.write(made, tmp_path / str(number))
        assert (report.copied, report.added) == (3, 0)
        assert len(list((tmp_path / str(number)).glob("*.safetensors"))) == (1 if number else 3)
        assert all(torch.equal(held(tmp_path / str(number))[name], tensors[name]) for name in tensors)


def test_safetensors_are_refused_by_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(NothingMatched, match=r"safetensors already(?s:.*)surgery reshard"):
        surgery.convert_files(surgery.open_checkpoint(tmp_path))
    assert "safetensors already" in surge("convert-files", tmp_path, "-o", tmp_path / "out", fails=1)
    assert not (tmp_path / "out").exists()
