"""Fusing is splitting read backwards: `fuse(split(x))` is x, file for file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import LayoutError, NothingMatched, NotSupported, PlanError
from surgery.lazy.tensor import Stored, concat, narrow

Saved = Callable[..., Path]
FAMILIES = ("phi3", "gpt2", "gpt_neox", "bloom", "sam")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [None, "30KB"])
def test_fuse_of_split_is_the_checkpoint_file_for_file(
    family: str, size: str | None, saved: Saved, tmp_path: Path
) -> None:
    """Through files on disk, with the layout that it came in and with another one."""
    base = saved(family, shard="20KB", dtype=torch.bfloat16)
    surgery.write(surgery.open_checkpoint(base), tmp_path / "base", size)
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(base)), tmp_path / "split", size)
    assert (
        surgery.split_qkv(surgery.open_checkpoint(base)).tensors.keys() != surgery.open_checkpoint(base).tensors.keys()
    )
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "split")), tmp_path / "fused", size)
    assert hashes(tmp_path / "fused") == hashes(tmp_path / "base")
    if size is None:
        assert hashes(tmp_path / "fused") == hashes(base)


@pytest.mark.parametrize("family", FAMILIES)
def test_fuse_of_split_in_one_pass_is_the_stored_tensor_again(family: str, saved: Saved) -> None:
    checkpoint = surgery.open_checkpoint(saved(family, shard="20KB"))
    fused = surgery.fuse_qkv(surgery.split_qkv(checkpoint))
    assert dict(fused.tensors) == dict(checkpoint.tensors)
    assert dict(fused.weight_map) == dict(checkpoint.weight_map)
    assert all(isinstance(t, Stored) for t in fused.tensors.values())


@pytest.mark.parametrize("family", ("phi3", "gpt_neox", "gpt2"))
def test_merge_between_split_and_fuse_is_one_pass(family: str, saved: Saved, tmp_path: Path) -> None:
    """A LoRA on the parts of a fused projection, merged into the fused checkpoint: the same bytes as through files."""
    checkpoint = surgery.open_checkpoint(saved(family, shard="20KB"))
    split = surgery.split_qkv(checkpoint)
    new = [n for n in split.tensors if n not in checkpoint.tensors and n.endswith(".weight")]
    tensors = {}
    for name in new[::3]:
        rows, columns = split.tensors[name].shape
        out, into = (columns, rows) if family == "gpt2" else (rows, columns)
        tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight"] = torch.randn(3, into)
        tensors[f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight"] = torch.randn(out, 3)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 3, "lora_alpha": 6}')
    merged = surgery.merge(split, surgery.open_adapter(adapter))
    surgery.write(surgery.fuse_qkv(merged), tmp_path / "once")
    surgery.write(merged, tmp_path / "merged")
    surgery.write(surgery.fuse_qkv(surgery.open_checkpoint(tmp_path / "merged")), tmp_path / "steps")
    assert hashes(tmp_path / "once") == hashes(tmp_path / "steps")
    before, after = hashes(Path(checkpoint.path)), hashes(tmp_path / "once")
    assert before.keys() == after.keys()
    assert before != after


def test_neighbouring_cuts_of_one_tensor_join_to_it(saved: Saved) -> None:
    tensor = next(t for t in surgery.open_checkpoint(saved("llama")).tensors.values() if len(t.shape) == 2)
    rows = tensor.shape[0]
    cuts = [narrow(tensor, 0, 0, 3), narrow(tensor, 0, 3, 5), narrow(tensor, 0, 8, rows - 8)]
    assert concat(cuts, 0) is tensor
    assert concat(cuts[:2], 0) == narrow(tensor, 0, 0, 8)
    assert concat([cuts[1], cuts[0]], 0) != narrow(tensor, 0, 0, 8)
    assert concat([cuts[0], cuts[2]], 0).shape == (rows - 5, tensor.shape[1])


def changed(
    saved: Saved, tmp_path: Path, family: str, change: Callable[[dict[str, torch.Tensor]], None]
) -> surgery.Checkpoint:
    """The split checkpoint of a family, in one file, after `change`."""
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(saved(family))), tmp_path / "split")
    tensors = load_file(tmp_path / "split" / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "split" / "model.safetensors", metadata={"format": "pt"})
    return surgery.open_checkpoint(tmp_path / "split")


def test_missing_part_is_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.layers.1.self_attn.k_proj.weight"]

    with pytest.raises(LayoutError, match="1 projections have no weight") as error:
        surgery.fuse_qkv(changed(saved, tmp_path, "phi3", change))
    assert error.value.where == ("model.layers.1.self_attn.k_proj",)


def test_missing_bias_is_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["gpt_neox.layers.2.attention.value.bias"]

    with pytest.raises(LayoutError, match="some fused projections have a bias, and some have none") as error:
        surgery.fuse_qkv(changed(saved, tmp_path, "gpt_neox", change))
    assert error.value.where == ("without: gpt_neox.layers.2.attention.value",)


def test_part_that_does_not_fit_is_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.v_proj.weight"] = torch.zeros(23, 48)

    with pytest.raises(LayoutError, match="the fused qkv does not fit the layout of model type `phi3`") as error:
        surgery.fuse_qkv(changed(saved, tmp_path, "phi3", change))
    assert error.value.where == (
        "model.safetensors: model.layers.0.self_attn.v_proj.weight",
        "(23, 48) along axis 0 is not 24, its part of 1 × [48|24|24]",
    )


def test_parts_of_other_dtypes_are_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.self_attn.v_proj.weight"
        tensors[name] = tensors[name].half()

    with pytest.raises(LayoutError, match="cannot join F16"):
        surgery.fuse_qkv(changed(saved, tmp_path, "phi3", change))


def test_quantised_parts_are_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.v_proj.weight_scale"] = torch.ones(1)

    with pytest.raises(NotSupported, match="1 tensors belong to fused projections"):
        surgery.fuse_qkv(changed(saved, tmp_path, "phi3", change))


def test_name_that_is_taken_is_refused(saved: Saved, tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.qkv_proj.weight"] = torch.ones(1)

    with pytest.raises(PlanError, match="the fused tensor would take the name of another"):
        surgery.fuse_qkv(changed(saved, tmp_path, "phi3", change))


def test_nothing_to_fuse_says_why(saved: Saved) -> None:
    with pytest.raises(NothingMatched, match="the checkpoint is already fused"):
        surgery.fuse_qkv(surgery.open_checkpoint(saved("phi3")))
    with pytest.raises(NothingMatched, match="no parts of a fused qkv or kv of model type `llama` are here") as error:
        surgery.fuse_qkv(surgery.open_checkpoint(saved("llama")))
    assert error.value.help and "model types are known to have such modules" in error.value.help


@pytest.mark.parametrize(
    ("kind", "near"),
    [("falcom", "falcon"), ("gpt_neoxx", "gpt_neox"), ("pfalcon", "falcon"), ("hpi3", "phi3"), ("@@@@", "")],
)
def test_an_unknown_type_gets_those_that_look_like_it(
    kind: str, near: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(saved("llama"), tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    for verb in (surgery.split_qkv, surgery.fuse_qkv):
        with pytest.raises(surgery.NothingMatched) as caught:
            verb(surgery.open_checkpoint(base))
        tip = str(caught.value.help)
        assert len(tip) < 250 and (f"{near}" in tip and f"nearest to `{kind}` " in tip) == bool(near)
