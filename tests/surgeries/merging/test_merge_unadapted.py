"""What is said of modules without factors, of factors that are zero, and of adapters that were trained in another
class: only what is so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import surgery

Saved = Callable[..., Path]
SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1}
VIT = {**SMALL, "image_size": 16, "patch_size": 8}
T5 = {"vocab_size": 97, "d_model": 32, "d_ff": 48, "num_layers": 2, "num_heads": 4, "d_kv": 8}


def _captions() -> tf.PreTrainedModel:
    """Its ViT has `q_proj` in memory and `query` in files, its BERT `query` in both."""
    decoder = tf.BertConfig(**BERT, is_decoder=True, add_cross_attention=True)
    vit = tf.ViTConfig(**{key: value for key, value in VIT.items() if key != "vocab_size"})
    return tf.VisionEncoderDecoderModel(
        tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, decoder, tie_word_embeddings=False)
    )


def adapted(model: Any, folder: Path, *, draw: bool = True, **options: Any) -> Path:
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, **options))
    with torch.no_grad():
        for parameter in made.parameters():
            if draw and parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    made.save_pretrained(folder)
    return folder


def notes(base: Path, adapter: Path, **how: Any) -> list[str]:
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **how)
    return [note for note in merged.notes if "taken on trust" not in note]


def without(adapter: Path, part: str) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: one for name, one in load_file(path).items() if part not in name}, path, {"format": "pt"})


def test_what_another_part_has_in_files_alone_is_not_aimed_at(tmp_path: Path) -> None:
    _captions().save_pretrained(tmp_path / "base")
    assert any(
        "encoder" in name and name.endswith("attention.query.weight")
        for name in load_file(tmp_path / "base/model.safetensors")
    )
    model = tf.VisionEncoderDecoderModel.from_pretrained(tmp_path / "base")
    adapter = adapted(model, tmp_path / "a", target_modules=["query", "value"])
    assert not any("aims at" in note for note in notes(tmp_path / "base", adapter))
    without(adapter, "layer.1.attention.self.value")
    said = [note for note in notes(tmp_path / "base", adapter) if "aims at" in note]
    assert len(said) == 1 and "aims at 1 modules" in said[0] and "layer.1.attention.self.value" in said[0]


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION"])
def test_an_encoder_has_no_decoder(task: str | None, tmp_path: Path) -> None:
    tf.T5ForConditionalGeneration(tf.T5Config(**T5)).save_pretrained(tmp_path / "base")
    model = tf.T5EncoderModel.from_pretrained(tmp_path / "base")
    adapter = adapted(model, tmp_path / "a", target_modules=["q", "v"], task_type=task)
    assert notes(tmp_path / "base", adapter) == []
    without(adapter, "block.1.layer.0.SelfAttention.v")
    assert ["aims at 1 modules" in note for note in notes(tmp_path / "base", adapter)] == [True]


def test_layers_that_only_draft_are_not_loaded(saved: Saved, tmp_path: Path) -> None:
    base = tmp_path / "base"
    tiny_models.build("llama").save_pretrained(base)
    adapter = adapted(tiny_models.build("llama"), tmp_path / "a", target_modules=["q_proj"])
    path = base / "model.safetensors"
    held = load_file(path)
    name = "layers.{}.self_attn.q_proj.weight"
    drafting = held["model." + name.format(2)].clone()
    save_file(
        held | {"model." + name.format(3): drafting, "mtp." + name.format(0): drafting.clone()}, path, {"format": "pt"}
    )
    assert not any("aims at" in note for note in notes(base, adapter))


ZERO: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "embedding": ("llama", {"target_modules": ["q_proj", "embed_tokens"]}),
    "Conv1D": ("gpt2", {"target_modules": ["c_attn"]}),
    "fused": ("bloom", {"target_modules": ["query_key_value"]}),
    "with biases": ("llama", {"target_modules": ["q_proj"], "lora_bias": False, "bias": "none"}),
}


@pytest.mark.parametrize("case", ZERO)
def test_an_untrained_adapter_is_told(case: str, saved: Saved, tmp_path: Path) -> None:
    family, options = ZERO[case]
    base = saved(family)
    adapter = adapted(type(tiny_models.build(family)).from_pretrained(base), tmp_path / "a", draw=False, **options)
    said = [note for note in notes(base, adapter) if "changes nothing" in note]
    assert said == [
        f"the LoRA of {adapter} changes nothing, since one factor of each module is zero"
        + ("" if case == "embedding" else ": the adapter was not trained, or not saved after it was")
    ]
    path = adapter / "adapter_model.safetensors"
    held = load_file(path)
    last = [name for name in sorted(held) if "lora_B" in name][-1]
    held[last][-1, -1] = 1e-3
    save_file(held, path, {"format": "pt"})
    assert not any("changes nothing" in note for note in notes(base, adapter))


def test_adalora_and_dora(saved: Saved, tmp_path: Path) -> None:
    """AdaLoRA begins with singular values of zero; DoRA's magnitude may be trained where B is zero."""
    base = saved("llama")
    model = type(tiny_models.build("llama")).from_pretrained(base)
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=1, init_r=2, target_r=2)
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "ada")
    path = tmp_path / "ada/adapter_model.safetensors"
    held = load_file(path)
    save_file(
        {name: torch.zeros_like(one) if "lora_E" in name else one for name, one in held.items()}, path, {"format": "pt"}
    )
    assert any("changes nothing" in note for note in notes(base, tmp_path / "ada"))
    model = type(tiny_models.build("llama")).from_pretrained(base)
    dora = adapted(model, tmp_path / "dora", draw=False, target_modules=["q_proj"], use_dora=True)
    assert not any("changes nothing" in note for note in notes(base, dora))


def test_a_class_that_the_base_became_or_holds_is_no_other(tmp_path: Path) -> None:
    tf.BertForMaskedLM(tf.BertConfig(**BERT)).save_pretrained(tmp_path / "base")
    model = tf.BertForTokenClassification.from_pretrained(tmp_path / "base")
    saved = adapted(model, tmp_path / "a", target_modules=["query"], modules_to_save=["classifier"])
    assert not any("is this its base?" in note for note in notes(tmp_path / "base", saved))
    tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)).save_pretrained(
        tmp_path / "gpt2"
    )
    body = adapted(tf.GPT2Model.from_pretrained(tmp_path / "gpt2"), tmp_path / "b", target_modules=["c_attn"])
    said = notes(tmp_path / "gpt2", body, names=[("^", "transformer.")])
    assert not any("is this its base?" in note for note in said)
    config = json.loads((body / "adapter_config.json").read_text())
    config["auto_mapping"]["base_model_class"] = "GPT2WithValueHead"
    (body / "adapter_config.json").write_text(json.dumps(config))
    said = notes(tmp_path / "gpt2", body, names=[("^", "transformer.")])
    assert sum("trained on GPT2WithValueHead, config.json says GPT2LMHeadModel" in note for note in said) == 1
