"""Files of torch's on the Hub: opened by ranges, and written as from here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from conftest import hashes
from safetensors.torch import load_file

import surgery
from hub.server import Hub
from surgery.errors import FormatError, NotSupported

Saved = Callable[..., Path]


def put(hub: Hub, folder: Path) -> str:
    hub.put_folder("org/old", folder)
    hub.put("org/old", {".gitattributes": None})
    hub.redirect = True
    return "org/old"


def sent(hub: Hub) -> int:
    return sum(seen.sent for seen in hub.seen("GET .*/(resolve|file)/"))


def model(folder: Path, shards: int) -> dict[str, torch.Tensor]:
    """A model of some megabytes, in one file or in several."""
    folder.mkdir()
    names = [f"layers.{i}.{part}" for i in range(12) for part in ("weight", "norm")]
    tensors = {n: torch.randn(300, 300) if n.endswith("weight") else torch.randn(3) for n in names}
    files = [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)] if shards > 1 else []
    for i, file in enumerate(files or ["pytorch_model.bin"]):
        torch.save({name: tensors[name] for name in names[i :: max(1, shards)]}, folder / file)
    if files:
        where = {name: files[i % shards] for i, name in enumerate(names)}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text("{}")
    return tensors


@pytest.mark.parametrize("shards", [1, 2])
def test_it_is_opened_by_ranges_and_written_as_from_here(shards: int, hub: Hub, tmp_path: Path) -> None:
    tensors = model(tmp_path / "in", shards)
    name = put(hub, tmp_path / "in")
    made = surgery.open_checkpoint(name)
    assert made.tensors.keys() == tensors.keys()
    assert sent(hub) < shards * 800_000 < 12 * 300 * 300 * 4  # the end of each file, and little more
    surgery.write(surgery.convert_files(made), tmp_path / "far")
    surgery.write(surgery.convert_files(surgery.open_checkpoint(tmp_path / "in")), tmp_path / "near")
    assert hashes(tmp_path / "far") == hashes(tmp_path / "near")
    held = {k: v for file in (tmp_path / "far").glob("*.safetensors") for k, v in load_file(file).items()}
    assert all(torch.equal(held[key], value) for key, value in tensors.items())


def test_a_file_by_its_name_with_a_key(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save({"ema": {"a": torch.ones(3)}, "model": {"a": torch.zeros(3)}}, tmp_path / "in/x.pt")
    name = put(hub, tmp_path / "in")
    assert torch.equal(surgery.open_checkpoint(f"{name}/x.pt", key="ema").load("a"), torch.ones(3))


def test_what_is_not_read_from_there_is_refused_by_name(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save({"a": torch.ones(3)}, tmp_path / "in/old.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "in/cut.bin").write_bytes(b"PK\x03\x04" + bytes(5000))
    dcp.save({"a": torch.ones(2)}, checkpoint_id=tmp_path / "in/dcp", no_dist=True)
    name = put(hub, tmp_path / "in")
    with pytest.raises(NotSupported, match=r"only zips(?s:.*)old.bin(?s:.*)hf download"):
        surgery.open_checkpoint(f"{name}/old.bin")
    with pytest.raises(FormatError, match="the zip is wrong"):
        surgery.open_checkpoint(f"{name}/cut.bin")
    with pytest.raises(NotSupported, match=r"distributed checkpoints are not read from the Hub(?s:.*)hf download"):
        surgery.open_checkpoint(f"{name}/dcp")
