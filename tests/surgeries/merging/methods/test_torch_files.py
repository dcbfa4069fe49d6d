"""Kinds besides LoRA on bases that torch saved: what they are merged into is the same, to the last bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file

import surgery
from surgery.errors import SurgeryError

from . import rows
from .cases import trained
from .test_methods import base as base

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = [
    "LoHa on Linear",
    "OFT on Linear",
    "HiRA on Linear",
    "MiSS, bat",
    "DeLoRA on Linear",
    "RoAd 2",
    "HRA on Linear",
]


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., Path]) -> dict[str, Path]:
    """The base as torch.save and as its distributed checkpoints have it."""
    root = tmp_path_factory.mktemp("torch")
    held = {name: one for file in base("linear").glob("*.safetensors") for name, one in load_file(file).items()}
    for name in ("bin", "dcp"):
        (root / name).mkdir()
        shutil.copy(base("linear") / "config.json", root / name)
    torch.save(held, root / "bin/pytorch_model.bin")
    dcp.save(dict(held), checkpoint_id=root / "dcp", no_dist=True)
    return {"bin": root / "bin", "dcp": root / "dcp"}


@pytest.mark.parametrize("how", ["bin", "dcp"])
@pytest.mark.parametrize("name", KINDS)
def test_the_same_as_of_safetensors(
    name: str, how: str, base: Callable[..., Path], by_torch: dict[str, Path], tmp_path: Path
) -> None:
    folder = trained(rows.CASES[name], base("linear"), tmp_path / "a")
    adapter, here = surgery.open_adapter(folder), surgery.open_checkpoint(by_torch[how])
    wanted = surgery.merge(surgery.open_checkpoint(base("linear")), adapter)
    made = surgery.merge(here, adapter)
    surgery.write(made, tmp_path / "out")
    found = surgery.open_checkpoint(tmp_path / "out")
    assert found.tensors.keys() == wanted.tensors.keys()
    assert all(torch.equal(found.load(key), wanted.load(key)) for key in wanted.tensors)
    assert any(not torch.equal(found.load(key), here.load(key)) for key in wanted.tensors)
    assert surgery.verify(tmp_path / "out", base=by_torch[how], adapter=folder).ok
    with pytest.raises(SurgeryError, match="only a base in safetensors can be restored"):
        surgery.write(surgery.reversible(made, here), tmp_path / "undo")
