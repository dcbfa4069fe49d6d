"""Names are what they are, character for character: those that normalise alike are of different tensors and files, and
those of 100,000 characters are names.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.checkpoint import Checkpoint

ALIKE = ("é", "e\u0301", "Å", "A\u030a", "\u212b", "가", "\u1100\u1161", "ﬁ", "fi", "Ａ", "A", "a", "ß", "ss")
ODD = (*(f"odd.{one}.weight" for one in ALIKE), f"odd.{'x' * 99_990}1", f"odd.{'x' * 99_990}é", f"odd.{'é' * 40_000}")
SHARDS = ("mod\u00e8le.safetensors", "mode\u0300le.safetensors")
FILES = ("r\u00e9sum\u00e9.txt", "re\u0301sume\u0301.txt")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, saved: Callable[..., Path]) -> Path:
    """A Phi-3 with tensors of odd names, in shards whose names normalise alike, and files beside it."""
    folder = tmp_path_factory.mktemp("odd")
    model = load_file(saved("phi3") / "model.safetensors")
    odd = {name: torch.full((2, 3), float(i)) for i, name in enumerate(ODD)}
    held = dict(zip(SHARDS, ({**model, **dict(list(odd.items())[::2])}, dict(list(odd.items())[1::2])), strict=True))
    for shard, tensors in held.items():
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    weight_map = {name: shard for shard, tensors in held.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_bytes((saved("phi3") / "config.json").read_bytes())
    for file in FILES:
        (folder / file).write_text(file)
    return folder


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    made = surgery.inject(surgery.open_checkpoint(base), target_modules=["qkv_proj"])
    surgery.write(made, out := tmp_path_factory.mktemp("lora") / "adapter")
    return out


def values(folder: Path) -> dict[str, list[float]]:
    """The tensors of odd names, as the safetensors library reads them."""
    found = {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    return {name: tensor.flatten().tolist() for name, tensor in found.items() if "odd." in name}


FIRST = "odd.é.weight"
MADE: dict[str, Callable[[Checkpoint, Path], Checkpoint]] = {
    "reshard": lambda base, lora: base,
    "rename": lambda base, lora: surgery.rename(base, [("^model", "blocks")]),
    "drop": lambda base, lora: surgery.drop(base, FIRST),
    "keep": lambda base, lora: surgery.keep(base, r"odd\..*"),
    "cast": lambda base, lora: surgery.cast(base, "bfloat16", only=r"model\..*"),
    "split": lambda base, lora: surgery.split(base),
    "fuse": lambda base, lora: surgery.fuse(surgery.split(base)),
    "merge": lambda base, lora: surgery.merge(base, surgery.open_adapter(lora)),
    "reversible": lambda base, lora: surgery.merge(base, surgery.open_adapter(lora), reversible=True),
}


@pytest.mark.parametrize("command", MADE)
@pytest.mark.parametrize("size", [None, 2_000])
def test_each_name_keeps_its_tensor(base: Path, lora: Path, tmp_path: Path, command: str, size: int | None) -> None:
    surgery.write(MADE[command](surgery.open_checkpoint(base), lora), out := tmp_path / "out", size)
    wanted = {name: [float(i)] * 6 for i, name in enumerate(ODD)}
    if command == "drop":
        del wanted[FIRST]
    assert values(out) == wanted
    assert [(out / file).read_text() for file in FILES] == [*FILES]
    assert size or {path.name for path in out.glob("*.safetensors")} == {*SHARDS}
    assert surgery.verify(out, check_class=False).ok
    if command == "reversible":
        surgery.write(surgery.unmerge(surgery.open_checkpoint(out)), back := tmp_path / "back")
        for path in base.iterdir():
            assert (back / path.name).read_bytes() == path.read_bytes()


def test_names_that_normalise_alike_are_different(base: Path, tmp_path: Path) -> None:
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in ODD}) < len(ODD)
    surgery.write(surgery.drop(surgery.open_checkpoint(base), FIRST), out := tmp_path / "out")
    assert surgery.diff(base, out).only_a == (FIRST,)
    assert surgery.inspect(base).total.tensors == len(surgery.open_checkpoint(base).tensors)


def test_a_rename_to_what_normalises_alike_takes_no_other_tensor(base: Path) -> None:
    one = surgery.drop(surgery.open_checkpoint(base), FIRST)
    assert surgery.rename(one, [("e\u0301", "é")])[FIRST].shape == (2, 3)
    with pytest.raises(surgery.PlanError, match="name"):
        surgery.rename(surgery.open_checkpoint(base), [("e\u0301", "é")])
