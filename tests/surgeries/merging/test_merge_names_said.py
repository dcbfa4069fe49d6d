"""Notes on the names that an adapter has: none where every module lies under its own name, and none with holes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from handmade import write_tensors

import surgery
from surgery.models.names_v5 import places

HOLES = re.compile(r"\S {2,}\S| is ,|\(\)|: ;|:\s*$| by the renames of  ")

# model type, class, a module under the names that its files have, and a module of the base that is saved whole, in
# its place
OWN = [
    ("llama", "LlamaForCausalLM", "model.layers.0.self_attn.q_proj", "lm_head"),
    ("vit", "ViTForImageClassification", "vit.encoder.layer.0.attention.attention.query", "classifier"),
    ("vit", "ViTForImageClassification", "vit.layers.0.attention.q_proj", "classifier"),
    ("llava", "LlavaForConditionalGeneration", "language_model.model.layers.0.self_attn.q_proj", "lm_head"),
    ("gpt_neox", "GPTNeoXForCausalLM", "gpt_neox.layers.0.attention.dense", "embed_out"),
]


@pytest.mark.parametrize(("kind", "architecture", "module", "saved"), OWN)
def test_a_new_tensor_beside_modules_under_their_own_names_is_no_rename(
    kind: str, architecture: str, module: str, saved: str, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    config = {"model_type": kind, "architectures": [architecture], "tie_word_embeddings": False}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    write_tensors(
        tmp_path / "base" / "model.safetensors",
        {f"{module}.weight": ("F32", (8, 8)), f"{saved}.weight": ("F32", (3, 8))},
    )
    said = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": [module.rpartition(".")[2]]}
    said["modules_to_save"] = ["extra", saved]
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(said))
    name = f"base_model.model.{module}"
    factors = {f"{name}.lora_A.weight": (2, 8), f"{name}.lora_B.weight": (8, 2)}
    whole = {f"base_model.model.{one}.weight": (3, 8) for one in ("extra", saved)}
    write_tensors(
        tmp_path / "adapter" / "adapter_model.safetensors",
        {n: ("F32", shape) for n, shape in (factors | whole).items()},
    )
    made = surgery.merge(
        surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter"), add="extra.*"
    )
    assert made.tensors.keys() == {f"{module}.weight", f"{saved}.weight", "extra.weight"}
    assert not [note for note in made.notes if HOLES.search(note) or "renames of" in note]


@pytest.mark.parametrize("config", [{"model_type": kind, "architectures": [name]} for kind, name, *_ in OWN])
def test_every_reading_that_moves_something_says_what_and_by_which_rule(config: dict[str, object]) -> None:
    """Under names of files and names in memory, each offered and each wanted."""
    names = [f"{module}.weight" for _, _, module, _ in OWN] + [
        "language_model.lm_head.weight",
        "embed_out.weight",
        "lm_head.weight",
    ]
    for wanted in [[name] for name in names] + [names]:
        for offered in (names, [name for name in names if name not in wanted], names[::2], names[1::2]):
            for reading in places(wanted, offered, config):
                if reading.moves:
                    assert not HOLES.search(str(reading)), str(reading)
