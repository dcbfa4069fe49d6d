"""Checkpoints that torch saved, where MODEL stands: opened, written as safetensors, merged into and loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
import torch
from handmade import write_adapter
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import SurgeryError

Saved = Callable[..., Path]


def pickled(source: Path, folder: Path, shards: int = 1) -> Path:
    """The checkpoint at `source` as torch's files, with the rest of its folder."""
    folder.mkdir()
    tensors = {k: v for file in sorted(source.glob("*.safetensors")) for k, v in load_file(file).items()}
    names = sorted(tensors)
    parts = [names[i::shards] for i in range(shards)]
    files = (
        [f"pytorch_model-{i + 1:05}-of-{shards:05}.bin" for i in range(shards)] if shards > 1 else ["pytorch_model.bin"]
    )
    for file, part in zip(files, parts, strict=True):
        torch.save({name: tensors[name] for name in part}, folder / file)
    if shards > 1:
        where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        size = sum(t.nbytes for t in tensors.values())
        (folder / "pytorch_model.bin.index.json").write_text(
            json.dumps({"metadata": {"total_size": size}, "weight_map": where})
        )
    for file in source.iterdir():
        if file.suffix == ".json" and "index" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"lr": 1.0}, folder / "training_args.bin")
    return folder


def held(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_becomes_the_same_checkpoint_in_safetensors(family: str, shards: int, saved: Saved, tmp_path: Path) -> None:
    source = pickled(saved(family), tmp_path / "in", shards)
    surgery.write(surgery.open_checkpoint(source), tmp_path / "out")
    made, wanted = held(tmp_path / "out"), held(saved(family))
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert not {name for name in files if name.endswith((".bin", ".bin.index.json"))}
    assert ("model.safetensors" in files) == (shards == 1)
    model = type(tiny_models.build(family)).from_pretrained(tmp_path / "out")
    assert torch.equal(tiny_models.output(model, family), tiny_models.output(tiny_models.build(family), family))
    assert surgery.verify(tmp_path / "out").ok


def test_merge_split_and_reshard_straight_from_it(saved: Saved, tmp_path: Path) -> None:
    source = pickled(saved("phi3"), tmp_path / "in", 2)
    adapter = write_adapter(tmp_path / "adapter", {"model.layers.0.self_attn.o_proj": (48, 48)})
    for number, base in enumerate((source, saved("phi3"))):
        made = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter))
        surgery.write(surgery.split_qkv(made), tmp_path / str(number), "40KB")
    assert all(torch.equal(held(tmp_path / "0")[k], v) for k, v in held(tmp_path / "1").items())


def test_one_file_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    torch.save(
        {"model": {"a": torch.arange(6.0).reshape(2, 3).t()}, "optimizer": {"x": torch.ones(3)}}, tmp_path / "in/x.pt"
    )
    surgery.write(surgery.open_checkpoint(tmp_path / "in/x.pt"), tmp_path / "out")
    assert torch.equal(held(tmp_path / "out")["a"], torch.arange(6.0).reshape(2, 3).t())


def test_safetensors_beside_it_are_preferred(saved: Saved, tmp_path: Path) -> None:
    source = pickled(saved("llama"), tmp_path / "in")
    save_file({"only": torch.ones(3)}, source / "model.safetensors", {"format": "pt"})
    assert list(surgery.open_checkpoint(source).tensors) == ["only"]


def test_tied_tensors_are_stored_each_and_told(tmp_path: Path) -> None:
    one = torch.randn(4, 3)
    torch.save({"a.weight": one, "b.weight": one}, tmp_path / "x.bin")
    made = surgery.open_checkpoint(tmp_path / "x.bin")
    assert any("a.weight = b.weight" in note for note in made.notes)
    surgery.write(made, tmp_path / "out")
    assert all(torch.equal(value, one) for value in held(tmp_path / "out").values())


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a.bin", "b.pt"], "more than one file that torch saved"),
        (["consolidated.00.pth", "consolidated.01.pth"], "how tensors of these names are cut"),
        (["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"], "pieces or copies"),
        (["mp_rank_00_model_states.pt"], "DeepSpeed"),
    ],
)
def test_parts_of_a_model_and_several_are_refused(names: list[str], what: str, tmp_path: Path) -> None:
    for name in names:
        torch.save({"a": torch.ones(2)}, tmp_path / name)
    with pytest.raises(SurgeryError) as caught:
        surgery.open_checkpoint(tmp_path)
    assert what in str(caught.value)


@pytest.mark.parametrize("given", ["", "pytorch_model-00001-of-00002.bin"])
def test_half_a_model_without_an_index_is_refused(given: str, saved: Saved, tmp_path: Path) -> None:
    folder = pickled(saved("llama"), tmp_path / "pickled", shards=2)
    (folder / "pytorch_model.bin.index.json").unlink()
    (folder / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(SurgeryError, match="1 of 2 shards were given, and no index"):
        surgery.open_checkpoint(folder / given)


def test_all_shards_without_an_index_are_one_model(saved: Saved, tmp_path: Path) -> None:
    folder = pickled(saved("llama"), tmp_path / "pickled", shards=2)
    (folder / "pytorch_model.bin.index.json").unlink()
    surgery.write(surgery.open_checkpoint(folder), tmp_path / "out")
    wanted, made = held(saved("llama")), held(tmp_path / "out")
    assert made.keys() == wanted.keys() and all(torch.equal(made[name], wanted[name]) for name in wanted)
    first, second = sorted(folder.glob("pytorch_model-*.bin"))
    second.write_bytes(first.read_bytes())
    with pytest.raises(SurgeryError, match="a tensor is in two files"):
        surgery.open_checkpoint(folder)


def test_an_index_that_is_wrong(saved: Saved, tmp_path: Path) -> None:
    source = pickled(saved("llama"), tmp_path / "in", 2)
    file = source / "pytorch_model.bin.index.json"
    said = json.loads(file.read_text())
    first = next(iter(said["weight_map"]))
    said["weight_map"][first] = next(f for f in said["weight_map"].values() if f != said["weight_map"][first])
    file.write_text(json.dumps(said))
    with pytest.raises(SurgeryError, match="the index and the files disagree"):
        surgery.open_checkpoint(source)
    (source / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(SurgeryError, match="not there"):
        surgery.open_checkpoint(source)
