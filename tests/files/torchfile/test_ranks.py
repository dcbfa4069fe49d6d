"""What FSDP2 saves on meshes of several kinds, by four real ranks: DTensors whose ranks lie anywhere, and trainings."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from conftest import unpacked
from safetensors.torch import load_file

import surgery
from surgery.errors import NotSupported, SurgeryError

FIXTURE = Path(__file__).parents[2] / "fixtures/distributed/checkpoints.tar.xz"


@pytest.fixture(scope="session")
def saves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the ranks saved: never written to."""
    return unpacked(FIXTURE, tmp_path_factory)


@pytest.mark.parametrize("kind", ["ranks", "app"])
def test_ranks_in_no_order_are_asked_for_by_the_mesh(kind: str, saves: Path) -> None:
    wanted = torch.load(saves / "turned.pt")
    made = surgery.open_checkpoint(saves / f"turned-{kind}")
    assert made.tensors.keys() == wanted.keys()
    assert all(torch.equal(made.load(name), wanted[name]) for name in wanted)


@pytest.mark.parametrize("kind", ["fsdp", "hsdp", "tp"])
@pytest.mark.parametrize("way", ["ranks", "titan", "app"])
def test_the_model_alone_is_whole_again(kind: str, way: str, saves: Path, tmp_path: Path) -> None:
    wanted = torch.load(saves / f"{kind}.pt")
    made = surgery.open_checkpoint(saves / f"{kind}-{way}")
    surgery.write(made, tmp_path / "out")
    held = load_file(tmp_path / "out/model.safetensors")
    assert held.keys() == wanted.keys()
    assert all(held[name].dtype == wanted[name].dtype and torch.equal(held[name], wanted[name]) for name in wanted)
    (left,) = (note for note in made.notes if "no part of the model" in note)
    gone = {"ranks": ["_extra_state"], "titan": ["optimizer", "train_state", "step"], "app": [r"app\.optim"]}[way]
    assert all(re.search(name, left) for name in gone)


def test_all_is_taken_where_it_is_asked_for(saves: Path) -> None:
    made = surgery.open_checkpoint(saves / "fsdp-titan", key=".")
    assert any(name.startswith("optimizer.") for name in made.tensors) and "_extra_state.amax" in made.tensors


def test_a_buffer_that_differs_from_rank_to_rank_is_refused(saves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saves / "fsdp-ranks", tmp_path / "in")
    file = folder / "model_world_size_4_rank_2.pt"
    raw = file.read_bytes()
    old = torch.arange(3).numpy().tobytes()
    assert raw.count(old) == 1
    file.write_bytes(raw.replace(old, torch.tensor([0, 1, 3]).numpy().tobytes()))
    with pytest.raises(NotSupported, match="another one in each"):
        surgery.open_checkpoint(folder)


def test_a_rank_of_another_mesh_is_refused(saves: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saves / "fsdp-ranks", tmp_path / "in")
    shutil.copy(saves / "hsdp-ranks/model_world_size_4_rank_1.pt", folder)
    with pytest.raises(SurgeryError, match="do not say the same of a tensor"):
        surgery.open_checkpoint(folder)
