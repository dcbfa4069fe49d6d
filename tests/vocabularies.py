"""Tiny models of many families for surgery on vocabularies, and tokenizers made on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tiny_models
import torch
import transformers as tf

_TEXT = {**tiny_models._LLAMA, "num_hidden_layers": 2}
_SMALL = {"vocab_size": 97, "hidden_size": 36, "intermediate_size": 40, "num_hidden_layers": 2}
_SEQ = {
    "vocab_size": 97, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "max_position_embeddings": 64,
}  # fmt: skip
_IDS = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}


def _llava() -> tf.PreTrainedModel:
    vision = tf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=16
    )
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**_TEXT), image_token_id=90)
    )


def gemma3n(per_layer: int) -> tf.PreTrainedModel:
    return tf.Gemma3nForCausalLM(
        tf.Gemma3nTextConfig(
            **{**_TEXT, "num_hidden_layers": 2}, head_dim=12, vocab_size_per_layer_input=per_layer, laurel_rank=4,
            hidden_size_per_layer_input=8, num_kv_shared_layers=0, activation_sparsity_pattern=[0.0, 0.0],
            layer_types=["sliding_attention", "full_attention"], sliding_window=8,
        )
    )  # fmt: skip


MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT)),
    "llama-tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, tie_word_embeddings=True)),
    "llama-labels": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**_TEXT, num_labels=3)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**tiny_models.TEXT, n_embd=36, n_layer=2, n_head=3)),
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**_SMALL, num_attention_heads=3)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_SMALL, num_attention_heads=3)),
    "mobilebert": lambda: tf.MobileBertForMaskedLM(
        tf.MobileBertConfig(**{**_SMALL, "hidden_size": 32}, embedding_size=16, num_attention_heads=2,
                            intra_bottleneck_size=16, num_feedforward_networks=1)),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4, decoder_start_token_id=0)),
    "t5-untied": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=40, num_layers=1, num_heads=4, decoder_start_token_id=0,
                    tie_word_embeddings=False)),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_SEQ, **_IDS, forced_eos_token_id=2)),
    "marian": lambda: tf.MarianMTModel(tf.MarianConfig(**_SEQ, **_IDS, decoder_vocab_size=97)),
    "gemma": lambda: tf.GemmaForCausalLM(tf.GemmaConfig(**_TEXT, head_dim=12)),
    "gemma3n": lambda: gemma3n(97),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_TEXT)),
    "gptj": lambda: tf.GPTJForCausalLM(
        tf.GPTJConfig(**tiny_models.TEXT, n_embd=36, n_layer=2, n_head=3, rotary_dim=4)),
    "phi": lambda: tf.PhiForCausalLM(tf.PhiConfig(**{**_SMALL, **tiny_models.TEXT}, num_attention_heads=3)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(vocab_size=97, hidden_size=36, ffn_dim=40, num_hidden_layers=2, num_attention_heads=3,
                     word_embed_proj_dim=36, max_position_embeddings=64)),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(hidden_size=32, state_size=4, num_hidden_layers=2, **tiny_models.TEXT | {"vocab_size": 97})),
    "llava": _llava,
    "whisper": lambda: tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(**{k: v for k, v in _SEQ.items() if k != "max_position_embeddings"}, **_IDS,
                         max_source_positions=20, max_target_positions=64, num_mel_bins=8,
                         suppress_tokens=[5, 6], begin_suppress_tokens=[7])),
    "xlm": lambda: tf.XLMWithLMHeadModel(tf.XLMConfig(vocab_size=97, emb_dim=32, n_layers=1, n_heads=2, n_langs=1)),
}  # fmt: skip


def made(family: str, *, seed: int = 0) -> Any:
    """The model, every parameter random, biases too."""
    torch.manual_seed(seed)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.add_(torch.randn_like(buffer))
    return model


def logits(model: Any, ids: Sequence[int] | torch.Tensor) -> torch.Tensor:
    """What the model computes of the ids, and of a sound where it hears one."""
    given = torch.as_tensor(ids).reshape(1, -1)
    config = model.config
    said: dict[str, Any] = {"input_ids": given}
    if config.model_type == "whisper":
        sound = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(1))
        said = {"input_features": sound, "decoder_input_ids": given}
    elif config.is_encoder_decoder:
        said |= {"decoder_input_ids": given}
    with torch.no_grad():
        return model(**said).logits[0]


SENTENCES = ("the cat sat on the mat", "a dog ran to the cat", "the sun rose on a sea of green", "so it goes")


def words(path: Path, tokens: Sequence[str], **roles: str) -> Path:
    """A tokenizer of whole words, whose ids are the tokens' places."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({text: n for n, text in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **roles).save_pretrained(path)
    return path


def trained(path: Path, kind: str, size: int, special: Sequence[str] = ("<unk>", "<s>", "</s>")) -> Path:
    """A BPE tokenizer: byte-level, or with the marks of SentencePiece."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(path)
    return path


def edited(path: Path, **fields: Any) -> Path:
    """The folder, whose config.json says these fields."""
    said = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**said, **fields}))
    return path
