"""An adapter that lost what it trained whole: refused, since the merge would be another model than the one that was
trained.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import transformers as tf
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError

Saved = Callable[..., Path]


def adapter_of(folder: Path, model: Any, **lora: Any) -> Path:
    """An adapter as PEFT saves it."""
    peft.get_peft_model(model, peft.LoraConfig(r=2, **lora)).save_pretrained(folder)
    return folder


def without(folder: Path, part: str) -> Path:
    """The adapter, of whose tensors those called so are gone."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    left = {name: tensor for name, tensor in tensors.items() if part not in name}
    assert left and len(left) < len(tensors)
    save_file(left, file)
    return folder


def merge(base: Path, adapter: Path, **told: Any) -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told)


@pytest.mark.parametrize("family", ["llama", "llama-tied"])
@pytest.mark.parametrize("lost", ["lm_head", "embed_tokens"])
def test_a_saved_module_that_is_not_there(family: str, lost: str, saved: Saved, tmp_path: Path) -> None:
    model = tiny_models.build(family)
    folder = adapter_of(tmp_path / "a", model, target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    with pytest.raises(AdapterError, match="holds no tensor of what") as caught:
        merge(saved(family), without(folder, lost))
    assert f"modules_to_save names {lost}, which the base has" in caught.value.where


def test_trained_tokens_that_are_not_there(saved: Saved, tmp_path: Path) -> None:
    folder = adapter_of(
        tmp_path / "a", tiny_models.build("llama"), target_modules=["q_proj"], trainable_token_indices=[3, 5]
    )
    with pytest.raises(AdapterError, match="holds no tensor of what"):
        merge(saved("llama"), without(folder, "token_adapter"))


def test_names_of_heads_that_the_base_has_not_are_no_loss(saved: Saved, tmp_path: Path) -> None:
    """PEFT names `classifier` and `score` for every classifier; a class has one of them."""
    folder = adapter_of(tmp_path / "a", tiny_models.build("llama"), target_modules=["q_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "modules_to_save": ["classifier", "score"]}))
    assert merge(saved("llama"), folder).tensors


HEADS = {
    "bert": (tf.AutoModelForSequenceClassification, "SEQ_CLS", "query", "classifier"),
    "llama": (tf.AutoModelForSequenceClassification, "SEQ_CLS", "q_proj", "score"),
    "gpt2": (tf.AutoModelForTokenClassification, "TOKEN_CLS", "c_attn", "classifier"),
}


@pytest.mark.parametrize("family", HEADS)
def test_a_classifier_without_its_head(family: str, tmp_path: Path) -> None:
    auto, task, module, head = HEADS[family]
    base = tiny_models.build(family) if family != "bert" else tf.BertForMaskedLM(tiny_models.build("bert").config)
    base.save_pretrained(tmp_path / "base")
    model = auto.from_pretrained(tmp_path / "base", num_labels=3)
    folder = without(adapter_of(tmp_path / "a", model, target_modules=[module], task_type=task), f".{head}")
    with pytest.raises(
        AdapterError, match=f"was trained in a {type(model).__name__}, and its file has no head of one"
    ) as caught:
        merge(tmp_path / "base", folder)
    assert "--architecture" in str(caught.value.help)
    current = json.loads((tmp_path / "base/config.json").read_text())["architectures"][0]
    assert merge(tmp_path / "base", folder, architecture=current).config["architectures"] == [current]


def test_a_head_under_a_name_that_peft_does_not_save(tmp_path: Path) -> None:
    """BART's is called classification_head: trained, and never in the file."""
    sizes = {
        "d_model": 12,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    config = tf.BartConfig(vocab_size=50, encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=32, **sizes)
    tf.BartForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    model = tf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    folder = adapter_of(tmp_path / "a", model, target_modules=["q_proj"], task_type="SEQ_CLS")
    with pytest.raises(AdapterError, match="was trained in a BartForSequenceClassification"):
        merge(tmp_path / "base", folder)
