"""Chains of small surgeries, drawn at random: in one pass they write what they write one after another."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import save_file

import surgery
from surgery.errors import SurgeryError

Edit = Callable[[surgery.Checkpoint], surgery.Checkpoint]


def edits(source: random.Random, other: Path) -> Edit:
    """A surgery with options drawn at random, which may be refused."""
    layer, dtype = source.randrange(3), source.choice(["bfloat16", "float16", "float32", "float8_e5m2", "float64"])
    prefix = f"x{source.randrange(3)}."
    said = source.choice([{}, {"only": rf".*layers\.{layer}\..*"}, {"except_": r".*norm.*"}])
    return source.choice(
        [
            lambda one: surgery.drop(one, rf".*layers\.{layer}\..*"),
            lambda one: surgery.keep(one, r".*(weight|bias)"),
            lambda one: surgery.keep(one, r"(?!.*mlp).*"),
            lambda one: surgery.rename(one, [(r"\bself_attn\b", "attention")]),
            lambda one: surgery.cast(one, dtype, allow_overflow=True, **said),
            lambda one: surgery.cast(one, dtype, allow_overflow=True),
            surgery.tie,
            surgery.untie,
            surgery.split_qkv,
            surgery.fuse_qkv,
            lambda one: surgery.layers(one, order="1,0,0"),
            lambda one: surgery.add(one, surgery.open_checkpoint(other), prefix=prefix),
            lambda one: surgery.add(one, surgery.open_checkpoint(other), pattern=r"lm_head\..*"),
        ]
    )


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    value = torch.arange(12.0).view(3, 4)
    save_file({"embed": value, "odd": torch.tensor([1.0, float("nan")])}, folder / "model-00001-of-00002.safetensors",
              metadata={"format": "pt", "head": "embed"})  # fmt: skip
    save_file({"lm_head.weight": value.half()}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"metadata": {}, "weight_map": {"embed": "model-00001-of-00002.safetensors",'
        ' "odd": "model-00001-of-00002.safetensors", "lm_head.weight": "model-00002-of-00002.safetensors"}}'
    )
    return folder


@pytest.mark.parametrize("family", ["phi3", "llama-tied", "gpt2"])
@pytest.mark.parametrize("seed", range(8))
def test_one_pass_is_one_after_another(
    family: str, seed: int, other: Path, saved: Callable[..., Path], tmp_path: Path
) -> None:
    source = random.Random(f"{family} {seed}")
    place = saved(family, shard=source.choice([None, "40KB"]), dtype=source.choice([torch.float32, torch.bfloat16]))
    composed, done = surgery.open_checkpoint(place), 0
    for number in range(8):
        edit = edits(source, other)
        try:
            made = edit(composed)
        except SurgeryError as refused:
            with pytest.raises(type(refused)) as again:
                edit(surgery.open_checkpoint(place))
            assert again.value.what == refused.what
            continue
        surgery.write(edit(surgery.open_checkpoint(place)), tmp_path / str(number))
        composed, place, done = made, tmp_path / str(number), done + 1
    surgery.write(composed, tmp_path / "once")
    left = (".surgery", "surgery.json")
    assert hashes(tmp_path / "once", without=left) == hashes(place, without=left)
