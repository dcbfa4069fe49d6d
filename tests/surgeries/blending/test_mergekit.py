"""mergekit's configurations are read as mergekit reads them, or refused by name. What is written was compared with
mergekit 0.1.5; these are its rules for parameters, written down anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_blend import EACH, LAYERS, model

import surgery
from surgery.surgeries.blending.mergekit import is_mergekit, read_mergekit

TIES = """
merge_method: ties
base_model: base
models:
  - model: base
  - model: a
    parameters: {density: [1, 0.7, 0.1], weight: 1.0}
  - model: b
    parameters:
      density: 0.5
      weight: [{filter: mlp, value: 0.5}, {value: 0}]
parameters: {normalize: true, int8_mask: true, density: 0.9}
dtype: float16
out_dtype: bfloat16
"""
SLERP = """
merge_method: slerp
base_model: org/a
slices:
  - sources:
      - {model: org/a, layer_range: [0, 32]}
      - {model: "org/b@main", layer_range: [0, 32]}
parameters:
  t:
    - filter: self_attn
      value: [0, 0.5, 0.3, 0.7, 1]
    - value: 0.5
dtype: bfloat16
"""
FRANKEN = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 2]}]
  - sources: [{model: b, layer_range: [1, 3], parameters: {scale: [{filter: o_proj, value: 0.0}, {value: 1.0}]}}]
"""


def test_models_are_read() -> None:
    read = read_mergekit(yaml.safe_load(TIES))
    assert (read.models, read.base) == (("base", "a", "b"), "base")
    assert read.said == {
        "method": "ties", "compute": "float16", "dtype": "bfloat16",
        "parameters": {
            "density@2": "1,0.7,0.1", "weight@2": "1.0", "density@3": "0.5", "weight@3:mlp": "0.5", "weight@3": "0",
            "normalize": "true", "density": "0.9",
        },
    }  # fmt: skip
    assert "int8_mask" in read.notes[0]


def test_slices_are_read() -> None:
    read = read_mergekit(yaml.safe_load(SLERP))
    assert (read.models, read.base) == (("org/a", "org/b@main"), "org/a")
    assert read.said["slices"] == ["1:0-31+2:0-31"]
    assert read.said["parameters"] == {"t:self_attn": "0,0.5,0.3,0.7,1", "t": "0.5"}
    assert read_mergekit(yaml.safe_load(FRANKEN)).said["slices"] == ["1:0-1", "2:1-2"]


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"tokenizer_source": "union"}, "tokenizer_source `union`"),
        ({"tokenizer": {"source": "base"}}, "`tokenizer`"),
        ({"chat_template": "auto"}, "`chat_template`"),
        ({"modules": {"text": {}}}, "`modules`"),
        ({"merge_method": "lineer"}, "`lineer`"),
        ({"merge_methd": "linear"}, "`merge_methd`"),
        ({"parameters": {"densty": 0.5}}, "`densty`"),
        ({"models": [{"model": "a+lora"}]}, "a LoRA on a model"),
        ({"models": [{"model": {"model": "a", "lora": "l"}}]}, "`lora`"),
        ({"models": [{"model": "a", "weight": 1}]}, "`weight`"),
        ({"models": None}, "one of models and slices"),
        ({"models": [{"model": "a"}, {"model": "a"}]}, "named twice"),
        ({"dtype": "int8"}, "`int8`"),
        ({"parameters": {"normalize": [{"filtr": "mlp", "value": 1}]}}, "`filtr`"),
        ({"parameters": {"normalize": {"value": {}}}}, "no number"),
        ({"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [4, 2]}]}]}, "layer_range"),
        (
            {"models": None, "slices": [{"sources": [{"model": "a", "layer_range": [0, 2]}], "residual_weight": 0.1}]},
            "`residual_weight`",
        ),
    ],
)
def test_what_is_not_read_is_refused_by_name(change: dict[str, Any], name: str) -> None:
    config = yaml.safe_load(TIES) | change
    with pytest.raises(surgery.SurgeryError, match=name):
        read_mergekit({key: value for key, value in config.items() if value is not None}, "merge.yml")


def test_it_is_known_by_its_method() -> None:
    assert is_mergekit(yaml.safe_load(TIES))
    assert not is_mergekit({"source": "a", "steps": []})
    assert not is_mergekit([])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("two")
    return [model(folder / name, seed) for seed, name in enumerate("ab")]


def test_a_stack_of_slices_is_made(two: list[Path], tmp_path: Path) -> None:
    config = yaml.safe_load(FRANKEN.replace("model: a", f"model: {two[0]}").replace("model: b", f"model: {two[1]}"))
    surgery.write(surgery.as_mergekit(config), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    a, b = (load_file(place / "model.safetensors") for place in two)
    for new, (source, old) in enumerate([(a, 0), (a, 1), (b, 1), (b, 2)]):
        for name in EACH:
            wanted = source[f"model.layers.{old}.{name}"] * (0 if "o_proj" in name and new > 1 else 1)
            assert torch.equal(found[f"model.layers.{new}.{name}"], wanted)
    assert torch.equal(found["lm_head.weight"], b["lm_head.weight"])  # of the last slice, as mergekit has it
    assert torch.equal(found["model.embed_tokens.weight"], a["model.embed_tokens.weight"])


def test_a_configuration_runs_as_a_recipe(two: list[Path], tmp_path: Path) -> None:
    from surgery.recipes.run import made_by, read_recipe

    weights = "[{filter: self_attn, value: [0, 1]}, {value: 0.25}]"
    text = (
        f"merge_method: linear\nmodels:\n- model: {two[0]}\n  parameters: {{weight: {weights}}}\n"
        f"- model: {two[1]}\n  parameters: {{weight: 0.75}}\ndtype: float32\n"
    )
    (tmp_path / "merge.yml").write_text(text)
    surgery.write(made_by(read_recipe(tmp_path / "merge.yml")), tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    a, b = (load_file(place / "model.safetensors") for place in two)
    for name, value in found.items():
        weight = int(name.split(".")[2]) / (LAYERS - 1) if "self_attn" in name else 0.25
        torch.testing.assert_close(value, (weight * a[name] + 0.75 * b[name]) / (weight + 0.75))
