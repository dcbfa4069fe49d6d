"""Adapters of quantised models and plain bases, and the reverse: what their names tell, and what must not be mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from handmade import write_adapter, write_phi3

import surgery
from surgery.quantization import awq
from surgery.quantization.quantised import Quantisation
from surgery.surgeries.merging.trained_base import mark_of, on_codes

MODULE = "model.layers.0.self_attn.o_proj"


def adapter_of(named: str, folder: Path, **more: Any) -> surgery.Adapter:
    path = write_adapter(folder / "adapter", {MODULE: (64, 64)})
    said = json.loads((path / "adapter_config.json").read_text()) | {"base_model_name_or_path": named, **more}
    (path / "adapter_config.json").write_text(json.dumps(said))
    return surgery.open_adapter(path)


@pytest.fixture
def base(tmp_path: Path) -> surgery.Checkpoint:
    return surgery.open_checkpoint(write_phi3(tmp_path / "base", layers=1, hidden=64))


def noted(made: surgery.Checkpoint) -> str:
    return "\n".join(made.notes)


@pytest.mark.parametrize(
    ("name", "mark"),
    [
        ("unsloth/Llama-3.2-1B-bnb-4bit", "bnb-4bit"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "GPTQ-Int4"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "AWQ"),
        ("Qwen/Qwen3-8B-FP8", "FP8"),
        ("RedHatAI/gemma-3-12b-it-quantized.w4a16", "quantized.w4a16"),
        ("nvidia/Llama-3.1-8B-Instruct-NVFP4", "NVFP4"),
        ("/data/models/mistral-4bit/", "4bit"),
        ("meta-llama/Llama-3.1-8B", ""),
        ("org/awqua-7B", ""),
        ("org/int4ger", ""),
    ],
)
def test_names_that_tell(name: str, mark: str) -> None:
    assert mark_of(name) == mark


def test_an_adapter_of_codes_on_a_base_in_16_bits(base: surgery.Checkpoint, tmp_path: Path) -> None:
    adapter = adapter_of("unsloth/phi-3-bnb-4bit", tmp_path)
    assert "quantised by its name" in noted(surgery.merge(base, adapter))
    assert "quantised by its name" not in noted(surgery.merge(base, adapter, through="nf4"))
    assert "quantised by its name" not in noted(surgery.merge(base, adapter_of("org/phi-3", tmp_path / "plain")))


def test_an_adapter_of_16_bits_on_codes(base: surgery.Checkpoint, tmp_path: Path) -> None:
    codes = surgery.quantize(base, "nf4")
    told = noted(surgery.merge(codes, adapter_of("org/phi-3", tmp_path)))
    assert "if org/phi-3 was loaded so for the training" in told and "loaded in 16 bits, it is not" in told
    assert "for the training" not in noted(surgery.merge(codes, adapter_of("org/phi-3-bnb-4bit", tmp_path / "nf4")))
    here = str(Path(base.path))
    assert "for the training" not in noted(surgery.merge(codes, adapter_of(here, tmp_path / "same")))


def test_awq_and_plain_are_not_mixed(base: surgery.Checkpoint, tmp_path: Path) -> None:
    adapter = adapter_of("Qwen/Qwen2.5-7B-AWQ", tmp_path)
    with pytest.raises(surgery.AdapterError, match="AWQ rescaled its weights"):
        surgery.merge(base, adapter)
    assert surgery.merge(base, adapter, any_base=True)


def rotated(base: surgery.Checkpoint) -> surgery.Checkpoint:
    """A compressed-tensors model of which a rotation is told."""
    said = {"quant_method": "compressed-tensors", "transform_config": {"config_groups": {"R1": {"type": "hadamard"}}}}
    return base.with_config({**base.config, "quantization_config": said})


def smoothed(base: surgery.Checkpoint) -> surgery.Checkpoint:
    recipe = b"default_stage:\n  default_modifiers:\n    SmoothQuantModifier: {smoothing_strength: 0.8}\n"
    made = base.with_config({**base.config, "quantization_config": {"quant_method": "compressed-tensors"}})
    return replace(made, files={**made.files, "recipe.yaml": recipe})


def scaled(base: surgery.Checkpoint) -> surgery.Checkpoint:
    name = next(iter(base.tensors))
    tensors = {**base.tensors, f"{MODULE}.pre_quant_scale": base.tensors[name]}
    weight_map = {**base.weight_map, f"{MODULE}.pre_quant_scale": base.weight_map[name]}
    return replace(base, tensors=tensors, weight_map=weight_map)


@pytest.mark.parametrize("made", [rotated, smoothed, scaled])
def test_a_base_that_was_changed_around_its_weights_takes_no_adapter_of_a_plain_one(
    made: Any, base: surgery.Checkpoint, tmp_path: Path
) -> None:
    with pytest.raises(surgery.AdapterError, match="this base is another model"):
        surgery.merge(made(base), adapter_of("org/phi-3", tmp_path))


def test_an_awq_base_takes_adapters_of_its_kind_alone(base: surgery.Checkpoint, tmp_path: Path) -> None:
    def noted_on(named: str) -> list[str]:
        held = Quantisation(awq.SCHEME, {}, {})
        return on_codes(base, held, [adapter_of(named, tmp_path / named[-3:])], any_base=False, through=None)

    with pytest.raises(surgery.AdapterError, match="AWQ multiplied the inputs"):
        noted_on("org/phi-3")
    assert "AWQ" not in "".join(noted_on("other/phi-3-AWQ"))


def test_an_adapter_that_is_right_in_new_codes_alone(base: surgery.Checkpoint, tmp_path: Path) -> None:
    adapter = adapter_of("org/phi-3", tmp_path, nvfp4_merge_aware=True)
    with pytest.raises(surgery.NotSupported, match="NVFP4's rounding"):
        surgery.merge(base, adapter, any_base=True)
