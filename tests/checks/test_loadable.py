"""What is said of a checkpoint that the class of its config.json does not load: every tensor by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import surgery

SHAPES = {
    "a head of a resized vocabulary": ("llama", {"lm_head.weight": (99, 48)}),
    "a norm": ("llama", {"model.norm.weight": (47,)}),
    "two": ("llama", {"lm_head.weight": (99, 48), "model.layers.1.mlp.up_proj.weight": (80, 47)}),
    "a Conv1D": ("gpt2", {"transformer.h.0.attn.c_attn.weight": (36, 107)}),
    "a head of its own": ("bert", {"qa_outputs.bias": (3,)}),
}


@pytest.mark.parametrize("case", SHAPES)
def test_a_tensor_of_another_shape_is_named_with_both(case: str, tmp_path: Path) -> None:
    family, shapes = SHAPES[case]
    tiny_models.build(family).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    held = load_file(path)
    save_file(held | {name: torch.zeros(shape) for name, shape in shapes.items()}, path, {"format": "pt"})
    check = next(one for one in surgery.verify(tmp_path).checks if one.name == "class")
    assert check.ok is False and "would not load it whole" in check.detail
    said = " ".join(check.where)
    for name, shape in shapes.items():
        assert f"{name} is {shape}, the class has {tuple(held[name].shape)}" in said
    assert "report" not in f"{check.detail}{said}"
