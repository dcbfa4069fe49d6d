"""Tokens trained in an embedding that is tied to a head with a bias: PEFT computes the head without it, and so does
what is merged; and families whose ties the table alone knows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

import surgery

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1}
OPENAI = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
XGLM = {"vocab_size": 97, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
ZAMBA = {
    "num_key_value_heads": 4,
    "attn_layer_period": 3, "attn_layer_offset": 2, "mamba_d_state": 4, "n_mamba_heads": 2, "use_mamba_kernels": False,
}  # fmt: skip
BIASED: dict[str, tuple[Callable[[], tf.PreTrainedModel], str, str]] = {
    "bert": (lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)), "query", "word_embeddings"),
    "albert": (lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**BERT, embedding_size=16)), "query", "word_embeddings"),
    "roberta": (lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**BERT)), "query", "word_embeddings"),
    "modernbert": (
        lambda: tf.ModernBertForMaskedLM(
            tf.ModernBertConfig(**SMALL, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
        ),
        "Wqkv",
        "tok_embeddings",
    ),
    "xlnet": (
        lambda: tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=97, d_model=32, n_layer=2, n_head=4, d_inner=48)),
        "layer_1",
        "word_embedding",
    ),
}
OTHERS: dict[str, tuple[Callable[[], tf.PreTrainedModel], str, str]] = {
    "xglm": (lambda: tf.XGLMForCausalLM(tf.XGLMConfig(**XGLM)), "q_proj", "embed_tokens"),
    "openai-gpt": (lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**OPENAI)), "c_attn", "tokens_embed"),
    "openai-gpt's body": (lambda: tf.OpenAIGPTModel(tf.OpenAIGPTConfig(**OPENAI)), "c_attn", "tokens_embed"),
    "zamba": (
        lambda: tf.ZambaForCausalLM(tf.ZambaConfig(**{**SMALL, "num_hidden_layers": 9, **ZAMBA})),
        "mamba.out_proj",
        "embed_tokens",
    ),
    "mamba": (
        lambda: tf.MambaForCausalLM(tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2)),
        "x_proj",
        "embeddings",
    ),
    "lfm2": (lambda: tf.Lfm2ForCausalLM(tf.Lfm2Config(**SMALL, num_key_value_heads=2)), "q_proj", "embed_tokens"),
}


def output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval()(input_ids=ids)
    return found.logits if "logits" in found else found.last_hidden_state


def drawn(model: Any, *, trained: bool) -> Any:
    """The model with random numbers added, to what is trained or to all biases."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad if trained else name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def check_live(build: Callable[[], tf.PreTrainedModel], options: dict[str, Any], folder: Path) -> surgery.Checkpoint:
    """What is merged is the live model, and loading leaves nothing to chance; the merged checkpoint."""
    torch.manual_seed(0)
    base, kind = folder / "base", type(build())
    if not base.exists():
        drawn(build(), trained=False).save_pretrained(base)
    adapter, out = (folder / f"{name}{len(list(folder.iterdir()))}" for name in ("adapter", "merged"))
    model = get_peft_model(kind.from_pretrained(base), LoraConfig(r=4, **options))
    drawn(model, trained=True).save_pretrained(adapter)
    live = output(PeftModel.from_pretrained(kind.from_pretrained(base), adapter))
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter))
    surgery.write(merged, out)
    loaded, info = kind.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (live - output(kind.from_pretrained(base))).abs().max() > 1e-2
    assert (live - output(loaded)).abs().max() < 1e-4 * live.abs().max()
    return merged


@pytest.mark.parametrize("family", BIASED)
def test_the_bias_of_a_head_with_trained_tokens_is_zero(family: str, tmp_path: Path) -> None:
    build, inner, embedding = BIASED[family]
    tokens = {"target_modules": [inner], "trainable_token_indices": {embedding: [3, 5, 8]}}
    merged = check_live(build, tokens, tmp_path)
    said = [note for note in merged.notes if "which PEFT computes without its bias" in note]
    assert len(said) == 1 and said[0].partition(": zero")[0].endswith(("decoder.bias", "lm_loss.bias"))
    check_live(build, {**tokens, "bias": "all"}, tmp_path)
    undone = tmp_path / "undone"
    base = surgery.open_checkpoint(tmp_path / "base")
    surgery.write(surgery.reversible(merged, base), tmp_path / "with-record")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "with-record")), undone)
    before, after = (load_file(path / "model.safetensors") for path in (tmp_path / "base", undone))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", BIASED)
def test_trained_biases_of_masked_models(family: str, tmp_path: Path) -> None:
    build, inner, embedding = BIASED[family]
    check_live(build, {"target_modules": [inner], "bias": "all"}, tmp_path)
    check_live(build, {"target_modules": [inner, embedding]}, tmp_path)


@pytest.mark.parametrize("family", OTHERS)
def test_embeddings_of_families_that_the_table_alone_knows(family: str, tmp_path: Path) -> None:
    build, inner, embedding = OTHERS[family]
    check_live(build, {"target_modules": [inner, embedding]}, tmp_path)
    check_live(build, {"target_modules": [inner], "trainable_token_indices": {embedding: [3, 5, 8]}}, tmp_path)
    check_live(build, {"target_modules": [inner], "modules_to_save": [embedding]}, tmp_path)
