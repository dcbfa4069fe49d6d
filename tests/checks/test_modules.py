"""The tree of modules, and parts of tensors as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from handmade import write_tensors
from safetensors.torch import save_file

import surgery
from surgery.checks.modules import module_tree, part_of

NAMES = {"a.b.c.weight": (2, 3), "a.b.weight": (4,), "a.10.x": (1,), "a.9.x": (1,), "lone": (), "a.b": (5,), "..": (1,)}


def test_the_tree_holds_each_tensor_once(tmp_path: Path) -> None:
    write_tensors(tmp_path / "model.safetensors", {name: ("F32", shape) for name, shape in NAMES.items()})
    tensors = surgery.open_checkpoint(tmp_path / "model.safetensors").tensors
    top = module_tree(tensors)
    found = list[str]()
    todo = [top]
    while todo:
        here = todo.pop()
        found += here.tensors.values()
        inner = list(here.modules.values())
        assert here.count == len(here.tensors) + sum(one.count for one in inner)
        assert here.nbytes == sum(tensors[n].nbytes for n in here.tensors.values()) + sum(m.nbytes for m in inner)
        todo += inner
    assert sorted(found) == sorted(NAMES)
    assert [*top.modules["a"].modules] == ["9", "10", "b"]
    assert top.modules["a"].modules["b"].path == "a.b"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> surgery.Checkpoint:
    path = tmp_path_factory.mktemp("parts") / "model.safetensors"
    save_file({"t": torch.arange(240).reshape(2, 12, 10), "s": torch.tensor(3)}, path, {"format": "pt"})
    return surgery.open_checkpoint(path)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("", (slice(0, 1), slice(0, 8), slice(0, 8))),
        ("1", (slice(1, 2), slice(0, 8), slice(0, 8))),
        (":, 3:5, 9", (slice(0, 2), slice(3, 5), slice(9, 10))),
        ("0:1,,:4", (slice(0, 1), slice(0, 8), slice(0, 4))),
        ("0,10:,", (slice(0, 1), slice(10, 12), slice(0, 8))),
    ],
)
def test_a_part_is_torch_s(checkpoint: surgery.Checkpoint, text: str, index: tuple[slice, ...]) -> None:
    from surgery.evaluation.evaluate import load

    assert torch.equal(load(part_of(checkpoint["t"], text)), checkpoint.load("t")[index])
    assert part_of(checkpoint["s"], "").shape == ()


@pytest.mark.parametrize("text", ["x", "1:2:3", "0:13, 5:99", "2", "-1", "1:1", "0,0,0,0", "0x1"])
def test_what_is_no_part_is_refused(checkpoint: surgery.Checkpoint, text: str) -> None:
    with pytest.raises(surgery.WrongUsage):
        part_of(checkpoint["t"], text)
