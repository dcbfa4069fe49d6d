"""Small real checkpoints, made on the spot from transformers' own classes, with random weights and biases.

Sizes are odd on purpose: hidden != heads * head_dim where the family can, fewer heads of k and v than of q, widths that
are not powers of two. `MODELS` lists the families; `build` makes the model, `save` its checkpoint.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf

transformers_logging = tf.logging
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()
warnings.filterwarnings("ignore", category=UserWarning)

TEXT = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **TEXT,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _sam() -> tf.PreTrainedModel:
    vision = tf.SamVisionConfig(
        hidden_size=36, num_hidden_layers=3, num_attention_heads=3, image_size=64, patch_size=16, window_size=2,
        global_attn_indexes=[1], mlp_ratio=2.0, output_channels=12, num_pos_feats=6, initializer_range=0.1,
    )  # fmt: skip
    prompt = tf.SamPromptEncoderConfig(hidden_size=12, image_size=64, patch_size=16, mask_input_channels=8)
    mask = tf.SamMaskDecoderConfig(
        hidden_size=12, mlp_dim=16, num_hidden_layers=1, num_attention_heads=2, iou_head_depth=2, iou_head_hidden_dim=16
    )
    return tf.SamModel(tf.SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=mask))


MODELS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA, head_dim=10)),
    "llama-tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_LLAMA, head_dim=10, tie_word_embeddings=True)),
    "phi3": lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**_LLAMA)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**TEXT, n_embd=36, n_layer=3, n_head=3, n_positions=64)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(**TEXT, hidden_size=36, intermediate_size=70, num_hidden_layers=3, num_attention_heads=3)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(**TEXT, hidden_size=36, n_layer=3, n_head=3)),
    "bert": lambda: tf.BertForQuestionAnswering(
        tf.BertConfig(
            vocab_size=97,
            hidden_size=36,
            intermediate_size=70,
            num_hidden_layers=3,
            num_attention_heads=3,
            max_position_embeddings=64,
        )
    ),
    "sam": _sam,
}


def build(family: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> tf.PreTrainedModel:
    """A model of the family in eval mode; every parameter random, biases and norms included."""
    torch.manual_seed(seed)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def save(
    family: str, path: Path, *, shard: str | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """The checkpoint of `build(family)` at `path`, as save_pretrained writes it; sharded at `shard` bytes, such as
    "20KB".
    """
    build(family, seed=seed, dtype=dtype).save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    return path


def inputs(family: str) -> dict[str, Any]:
    """Inputs on which the model's outputs are compared."""
    generator = torch.Generator().manual_seed(7)
    if family == "sam":
        return {"pixel_values": torch.randn(1, 3, 64, 64, generator=generator)}
    return {"input_ids": torch.randint(3, 97, (2, 17), generator=generator)}


def output(model: Any, family: str) -> torch.Tensor:
    """What the model computes on `inputs`, as one float32 tensor: logits, start logits, or predicted masks."""
    with torch.no_grad():
        result = model(**inputs(family))
    for name in ("logits", "start_logits", "pred_masks"):
        if name in result:
            return result[name].float()
    raise AssertionError(f"no output to compare in {list(result)}")
