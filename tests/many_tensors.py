"""Checkpoints of as many tensors as are asked for: headers, and holes behind them.

A Phi-3 of small layers, with fused qkv and gate_up; and an adapter on the q and the v of each layer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

from surgery.files.index import encode_index
from surgery.files.safetensors import encode_header
from surgery.lazy.dtypes import BF16, F32, Dtype

HIDDEN, WIDE, HEADS, KV = 16, 24, 2, 1
DIM = HIDDEN // HEADS
LAYER = {
    "self_attn.qkv_proj.weight": ((HEADS + 2 * KV) * DIM, HIDDEN),
    "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "mlp.gate_up_proj.weight": (2 * WIDE, HIDDEN),
    "mlp.down_proj.weight": (HIDDEN, WIDE),
    "input_layernorm.weight": (HIDDEN,),
    "post_attention_layernorm.weight": (HIDDEN,),
}
ENDS = {"model.embed_tokens.weight": (64, HIDDEN), "lm_head.weight": (64, HIDDEN), "model.norm.weight": (HIDDEN,)}


def layers_of(tensors: int) -> int:
    """How many layers have so many tensors, with what is before and behind them."""
    return max(1, (tensors - len(ENDS)) // len(LAYER))


def many_tensors(folder: Path, layers: int, most: int) -> Path:
    """A checkpoint of so many layers, of at most so many tensors in a shard; as it is, where it is there."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    shapes = ENDS | {f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in LAYER.items()}
    names, layout = list(shapes), dict[str, str]()
    count = -(-len(names) // most)
    for i in range(count):
        shard = f"model-{i + 1:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"
        held = names[i * most : (i + 1) * most]
        sparse(folder / shard, {name: (BF16, shapes[name]) for name in held})
        layout |= dict.fromkeys(held, shard)
    if count > 1:
        index = encode_index({"total_size": sum(2 * prod(shape) for shape in shapes.values())}, layout)
        (folder / "model.safetensors.index.json").write_bytes(index)
    config = {
        "model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": WIDE,
        "num_hidden_layers": layers, "num_attention_heads": HEADS, "num_key_value_heads": KV, "vocab_size": 64,
        "tie_word_embeddings": False, "dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def adapter_of(folder: Path, layers: int) -> Path:
    """LoRA of rank 1 on the q and the v of each layer, all zero; as it is, where it is there."""
    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    held = dict[str, tuple[Dtype, tuple[int, ...]]]()
    for layer in range(layers):
        for module, rows in (("q_proj", HEADS * DIM), ("v_proj", KV * DIM)):
            name = f"base_model.model.model.layers.{layer}.self_attn.{module}.lora_"
            held |= {f"{name}A.weight": (F32, (1, HIDDEN)), f"{name}B.weight": (F32, (rows, 1))}
    sparse(folder / "adapter_model.safetensors", held)
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def sparse(path: Path, held: Mapping[str, tuple[Dtype, tuple[int, ...]]]) -> None:
    """A file of these tensors: its header, and a hole behind it."""
    header = encode_header(held, {"format": "pt"})
    with open(path, "wb") as stream:
        stream.write(header)
        size = sum(dtype.bits // 8 * prod(shape) for dtype, shape in held.values())
        os.ftruncate(stream.fileno(), len(header) + size)
