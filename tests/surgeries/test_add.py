"""`add`: tensors of another checkpoint beside those that are there, none lost, none in the place of another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import hashes
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NothingMatched, NotSupported, PlanError

Saved = Callable[..., Path]


def opened(path: Path) -> surgery.Checkpoint:
    return surgery.open_checkpoint(path)


def all_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("shards", [(None, None), ("40KB", None), (None, "40KB"), ("40KB", "50KB")])
def test_all_of_both_is_there_and_an_index_says_so(shards: tuple[Any, Any], saved: Saved, tmp_path: Path) -> None:
    base, other = saved("llama", shard=shards[0]), saved("bert", shard=shards[1])
    report = surgery.write(surgery.add(opened(base), opened(other), prefix="encoder."), tmp_path / "out")
    wanted = all_of(base) | {f"encoder.{name}": tensor for name, tensor in all_of(other).items()}
    made = all_of(tmp_path / "out")
    assert made.keys() == wanted.keys()
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "out" / shard, "pt") as file:
            assert name in file.keys()  # noqa: SIM118
    assert index["weight_map"].keys() == wanted.keys()
    assert not (tmp_path / "out/model.safetensors").exists()  # which loaders would take for all of it
    assert report.added == len(all_of(other))
    assert report.copied == len(wanted)
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()


def test_what_the_pattern_leaves_is_dropped_by_name(saved: Saved) -> None:
    plan = surgery.plan(surgery.add(opened(saved("llama")), opened(saved("bert")), pattern=r"bert\.embeddings\..*"))
    other = all_of(saved("bert"))
    assert set(plan.added) == {name for name in other if name.startswith("bert.embeddings.")}
    assert set(plan.dropped) == other.keys() - set(plan.added)
    step = plan.history[-1]
    assert (step["surgery"], step["tensors"]) == ("add", len(plan.added))
    assert [source.role for source in plan.inputs] == ["base", "added"]


def test_what_is_dropped_under_a_name_that_is_there_says_whose_it_was(saved: Saved) -> None:
    base = opened(saved("llama"))
    made = surgery.plan(surgery.add(base, opened(saved("llama", seed=1)), prefix="b.", pattern=r"lm_head\.weight"))
    assert made.added == ("b.lm_head.weight",)
    assert len(made.dropped) == len(base.tensors) - 1
    assert all(" of llama" in name for name in made.dropped)


def test_names_that_are_there_are_refused_with_both(saved: Saved) -> None:
    with pytest.raises(PlanError) as caught:
        surgery.add(opened(saved("llama")), opened(saved("llama", seed=1)), pattern=r"(lm_head|model\.norm)\.weight")
    assert caught.value.what == "2 names are there already"
    assert caught.value.where[1] == f"lm_head.weight: lm_head.weight of {saved('llama', seed=1)}"
    once = surgery.add(opened(saved("llama")), opened(saved("bert")), prefix="x.")
    again = surgery.rename(opened(saved("bert")), [("^", "x.")])
    with pytest.raises(PlanError, match="1 names are there already"):
        surgery.add(once, again, pattern=r"x\.qa_outputs\.bias")


def test_what_a_header_ties_is_there_too(tmp_path: Path, saved: Saved) -> None:
    value = torch.arange(6.0).view(2, 3)
    save_file({"embed": value}, tmp_path / "a.safetensors", metadata={"format": "pt", "head": "embed"})
    save_file({"head": value + 1}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    with pytest.raises(PlanError, match="1 names are there already"):
        surgery.add(opened(tmp_path / "a.safetensors"), opened(tmp_path / "b.safetensors"))
    surgery.write(
        surgery.add(opened(tmp_path / "b.safetensors"), opened(tmp_path / "a.safetensors"), prefix="a."),
        tmp_path / "out",
    )
    ties = dict[str, str]()
    for path in sorted((tmp_path / "out").glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            ties |= file.metadata()
    assert ties == {"format": "pt", "a.head": "a.embed"}


def test_a_head_that_config_json_ties_is_not_added(saved: Saved) -> None:
    tied, other = opened(saved("llama-tied")), opened(saved("llama"))
    with pytest.raises(PlanError, match=r"config\.json ties what would be added"):
        surgery.add(tied, other, pattern=r"lm_head\.weight")
    apart = surgery.drop(surgery.untie(tied), r"lm_head\.weight")
    assert "lm_head.weight" in surgery.add(apart, other, pattern=r"lm_head\.weight").tensors


@pytest.mark.parametrize("how", ["nf4", "fp8"])
def test_codes_are_not_added_and_nothing_to_codes(how: str, quantised: Callable[[str], Path], saved: Saved) -> None:
    with pytest.raises(NotSupported, match="the added tensors are codes"):
        surgery.add(opened(saved("llama")), opened(quantised(how)), prefix="x.")
    assert surgery.add(opened(saved("llama")), opened(quantised(how)), prefix="x.", pattern=r".*norm\.weight").tensors
    with pytest.raises(NotSupported, match="the model is quantised"):
        surgery.add(opened(quantised(how)), opened(saved("llama")), prefix="x.")


def test_another_dtype_is_said(saved: Saved) -> None:
    made = surgery.add(opened(saved("llama")), opened(saved("bert", dtype=torch.bfloat16)), prefix="x.")
    assert any("most of what is added is BF16, and most of what was there F32" in note for note in made.notes)


def test_a_pattern_that_matches_nothing_of_the_other_one(saved: Saved) -> None:
    with pytest.raises(NothingMatched, match="no tensor's whole name matches"):
        surgery.add(opened(saved("llama")), opened(saved("bert")), pattern=r"model\..*")


def test_pipelines_are_refused(saved: Saved, tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    save_file({"w": torch.ones(4)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "unet" / "config.json").write_text("{}")
    index = {"_class_name": "Toy", "unet": ["diffusers", "UNet2DConditionModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for both in ((saved("bert"), tmp_path), (tmp_path, saved("bert"))):
        with pytest.raises(NotSupported, match="a pipeline is several checkpoints"):
            surgery.add(*map(opened, both), prefix="x.")


def test_a_model_put_together_of_two_is_loaded_by_its_class(tmp_path: Path) -> None:
    """A Llava of a CLIP and a Llama, whose own weights are put under the names that it has."""
    vision = tf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = tf.LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4
    )
    torch.manual_seed(0)
    whole = tf.LlavaForConditionalGeneration(tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=96))
    whole.save_pretrained(tmp_path / "whole")
    whole_file = opened(tmp_path / "whole")
    for part, pattern in (("tower", r"vision_tower\..*"), ("rest", r"(?!vision_tower\.).*")):
        made = surgery.keep(whole_file, pattern)
        made = surgery.rename(made, [(r"^vision_tower\.", "")]) if part == "tower" else made
        surgery.write(made, tmp_path / part)
    made = surgery.add(opened(tmp_path / "rest"), opened(tmp_path / "tower"), prefix="vision_tower.")
    surgery.write(made, tmp_path / "out", max_shard_size="5GB")
    assert hashes(tmp_path / "out")["model.safetensors"] == hashes(tmp_path / "whole")["model.safetensors"]
    got = tf.LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)[1]
    assert not got["missing_keys"]
    assert not got["unexpected_keys"]


def test_a_file_of_torch_is_added_as_any_other(saved: Saved, tmp_path: Path) -> None:
    torch.save({"proj.weight": torch.ones(3, 2)}, tmp_path / "proj.bin")
    surgery.write(surgery.add(opened(saved("llama")), opened(tmp_path / "proj.bin"), prefix="mm."), tmp_path / "out")
    assert torch.equal(all_of(tmp_path / "out")["mm.proj.weight"], torch.ones(3, 2))


def test_what_is_added_twice_keeps_its_own_ties(tmp_path: Path) -> None:
    """Through what reads the headers, too: each name stays with the tensor beside it, though both are one."""
    value = torch.arange(6.0).view(2, 3)
    save_file({"embed": value}, tmp_path / "a.safetensors", metadata={"format": "pt", "head": "embed"})
    save_file({"w": value + 1}, tmp_path / "b.safetensors", metadata={"format": "pt"})
    made, other = opened(tmp_path / "b.safetensors"), opened(tmp_path / "a.safetensors")
    for prefix in ("x.", "y."):
        made = surgery.add(made, other, prefix=prefix)
    surgery.write(surgery.rename(made, [("^w$", "v")]), tmp_path / "out")
    for number, prefix in ((2, "x."), (3, "y.")):
        with safe_open(tmp_path / "out" / f"b-0000{number}-of-00003.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", f"{prefix}head": f"{prefix}embed"}
