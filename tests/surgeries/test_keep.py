"""`keep`: all tensors but some are left out, by name; it is `drop` the other way round."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NothingMatched, PlanError

LAYER = r"model\.layers\.1\..*"


def test_it_is_dropping_the_rest(saved: Callable[..., Path], tmp_path: Path) -> None:
    base = surgery.open_checkpoint(saved("llama", shard="40KB"))
    surgery.write(surgery.keep(base, LAYER), tmp_path / "kept")
    surgery.write(surgery.drop(base, rf"(?!{LAYER}).*"), tmp_path / "left")
    assert hashes(tmp_path / "kept") == hashes(tmp_path / "left")
    kept = surgery.open_checkpoint(tmp_path / "kept").tensors
    assert sorted(kept) == sorted(n for n in base.tensors if n.startswith("model.layers.1."))


def test_what_is_left_out_is_named(saved: Callable[..., Path]) -> None:
    base = surgery.open_checkpoint(saved("llama"))
    made = surgery.plan(surgery.keep(base, r"lm_head\.weight"))
    assert len(made.dropped) == len(base.tensors) - 1
    assert made.history[-1]["kept"] == 1
    assert set(made.history[-1]["dropped"]) == set(made.dropped)


@pytest.mark.parametrize("pattern", ["layers", r"lm_head", r"model\.layer\..*"])
def test_a_pattern_that_matches_no_whole_name_is_an_error(pattern: str, saved: Callable[..., Path]) -> None:
    with pytest.raises(NothingMatched, match="no tensor's whole name matches"):
        surgery.keep(surgery.open_checkpoint(saved("llama")), pattern)


def test_codes_are_not_kept_without_their_scales(quantised: Callable[[str], Path]) -> None:
    base = surgery.open_checkpoint(quantised("fp8"))
    with pytest.raises(PlanError, match="a part would go, and a part would stay"):
        surgery.keep(base, r".*\.weight")
    assert surgery.keep(base, r"model\.layers\.0\..*").tensors


def test_what_a_header_ties_to_what_goes_is_stored(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3)
    said = {"format": "pt", "head": "embed"}
    save_file({"embed": value, "rest": value + 1}, tmp_path / "model.safetensors", metadata=said)
    surgery.write(surgery.keep(surgery.open_checkpoint(tmp_path / "model.safetensors"), "head"), tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert list(held) == ["head"]
    assert torch.equal(held["head"], value)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tie_of_which_both_are_kept_stays(tmp_path: Path) -> None:
    value = torch.arange(6.0).view(2, 3)
    said = {"format": "pt", "head": "embed"}
    save_file({"embed": value, "rest": value + 1}, tmp_path / "model.safetensors", metadata=said)
    surgery.write(surgery.keep(surgery.open_checkpoint(tmp_path / "model.safetensors"), "head|embed"), tmp_path / "out")
    assert list(load_file(tmp_path / "out" / "model.safetensors")) == ["embed"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == said


def test_of_a_pipeline_one_component_may_be_all_that_is_left(tmp_path: Path) -> None:
    for part in ("unet", "vae"):
        (tmp_path / "base" / part).mkdir(parents=True)
        tensors = {f"{part}.{i}": torch.full((3,), float(i)) for i in range(2)}
        save_file(tensors, tmp_path / "base" / part / "diffusion_pytorch_model.safetensors")
        (tmp_path / "base" / part / "config.json").write_text("{}")
    index = {"_class_name": "Toy", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "base" / "model_index.json").write_text(json.dumps(index))
    base = surgery.open_checkpoint(tmp_path / "base")
    assert set(base.tensors) == {"unet/unet.0", "unet/unet.1", "vae/vae.0", "vae/vae.1"}
    surgery.write(surgery.keep(base, "unet/.*"), tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")) == {"unet.0", "unet.1"}
    assert not list((tmp_path / "out" / "vae").glob("*.safetensors*"))


def test_a_name_that_is_left_out_twice_is_two_tensors(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Layer 2 is left out, then layer 1, which is called layer 2 by then: both are dropped by name."""
    base = surgery.open_checkpoint(saved("llama"))
    made = surgery.rename(surgery.drop(base, r"model\.layers\.2\..*"), [(r"layers\.1\.", "layers.2.")])
    left = surgery.plan(surgery.drop(made, r"model\.layers\.2\..*"))
    each = sum(name.startswith("model.layers.2.") for name in base.tensors)
    assert len(left.dropped) == 2 * each
    assert sum(name.endswith(": model.layers.2.mlp.up_proj.weight") for name in left.dropped) == 1
