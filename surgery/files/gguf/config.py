"""config.json out of the metadata of a GGUF: what transformers makes of it, and what that leaves to defaults.

What the tensors say counts before what the metadata do: sizes of vocabularies and heads, and which biases there are.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .header import Header, Info, Many, Value
from .names import Architecture

USUAL = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "rope.freq_base": "rope_theta",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
TOKENS = {"bos_token_id": "bos_token_id", "eos_token_id": "eos_token_id", "padding_token_id": "pad_token_id"}
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float32"}
PARTIAL = ("stablelm", "nemotron", "phi3")
# Layers of the sizes of Gemma of which queries are scaled by the width of a head that they do not have.
WIDE_GEMMA = {("gemma2", 46), ("gemma3_text", 62)}


def config_of(header: Header, tensors: Sequence[Info], known: Architecture, rope: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says of the model in the file; `rope` is what was found out of its rotation."""
    by_name = {one.name: one for one in tensors}
    keys = {**(USUAL if known.usual else {}), **known.extra}
    name = header.text("general.architecture")
    said = {called: _plain(header.metadata.get(f"{name}.{key}")) for key, called in keys.items()}
    config: dict[str, Any] = {key: value for key, value in said.items() if value is not None}
    config |= known.always
    config |= _of_tensors(by_name, known, config)
    if known.usual:
        config |= _rotation(header, name, known, config)
    config |= rope
    config |= {called: n for key, called in TOKENS.items() if (n := header.number(f"tokenizer.ggml.{key}")) is not None}
    if known.model_type == "phi3":  # whose class would look for a word that most vocabularies have not
        config.setdefault("pad_token_id", None)
    config |= {"model_type": known.model_type, "architectures": [known.loader], "dtype": _dtype(tensors)}
    return config


def _plain(value: Value | None) -> Any:
    """A number as JSON has it; one of all layers where they have the same. None for what is no number."""
    if isinstance(value, list):
        return _plain(value[0]) if value and len(set(value)) == 1 else None
    if value is None or isinstance(value, Many | str):
        return None
    return shortest(value) if isinstance(value, float) else value


def shortest(value: float) -> float:
    """The decimal of fewest digits that is the same float32."""
    if value != value or value in (float("inf"), float("-inf")):
        return value
    close = (float(f"{value:.{digits}g}") for digits in range(1, 10))
    return next((one for one in close if struct.pack("<f", one) == struct.pack("<f", value)), value)


def _of_tensors(tensors: Mapping[str, Info], known: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the tensors themselves."""
    found: dict[str, Any] = {"tie_word_embeddings": "output.weight" not in tensors}
    if words := tensors.get("token_embd.weight"):
        found["vocab_size"] = words.shape[0]
    if places := tensors.get("position_embd.weight"):
        found["n_positions"] = places.shape[0]
    heads, queries = config.get("num_attention_heads"), tensors.get("blk.0.attn_q.weight")
    if "head_dim" in known.extra.values() and queries and isinstance(heads, int) and heads > 0:
        found["head_dim"] = queries.shape[0] // heads
    biased = "blk.0.attn_q.bias" in tensors
    found |= {
        "llama": {"attention_bias": biased, "mlp_bias": "blk.0.ffn_gate.bias" in tensors},
        "qwen3": {"attention_bias": biased},
        "qwen3_moe": {"attention_bias": biased},
        "starcoder2": {"use_bias": biased},
        "stablelm": {"use_qkv_bias": biased, "use_parallel_residual": "blk.0.ffn_norm.weight" not in tensors},
    }.get(known.model_type, {})
    if stack := tensors.get("blk.0.ffn_gate_exps.weight"):
        found["moe_intermediate_size" if known.model_type != "mixtral" else "intermediate_size"] = stack.shape[1]
    if shared := tensors.get("blk.0.ffn_gate_shexp.weight"):
        found["shared_expert_intermediate_size"] = shared.shape[0]
    return found


def _rotation(header: Header, name: str, known: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """How positions are rotated, and Gemma's queries scaled, where it is not what the class does of itself."""
    found: dict[str, Any] = {}
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    turned = header.number(f"{name}.rope.dimension_count")
    if known.model_type in PARTIAL and turned and hidden and heads:
        found["partial_rotary_factor"] = turned / (config.get("head_dim") or hidden // heads)
    if (known.model_type, config.get("num_hidden_layers")) in WIDE_GEMMA and hidden and heads:
        found["query_pre_attn_scalar"] = hidden // heads
    kind, first = (
        header.text(f"{name}.rope.scaling.type"),
        header.number(f"{name}.rope.scaling.original_context_length"),
    )
    factor = _plain(header.metadata.get(f"{name}.rope.scaling.factor"))
    if kind in ("linear", "yarn") and isinstance(factor, float):
        first_of = {"original_max_position_embeddings": first} if first and kind == "yarn" else {}
        found["rope_scaling"] = {"rope_type": kind, "factor": factor, **first_of}
    if known.model_type == "phi3" and first:
        found["original_max_position_embeddings"] = first
    return found


def _dtype(tensors: Sequence[Info]) -> str:
    """The dtype that most elements have: blocks are decoded to float16."""
    sizes: Counter[str] = Counter()
    for one in tensors:
        sizes[one.kind.dtype.name if one.kind.dtype else "F16"] += one.nbytes // one.kind.nbytes * one.kind.elements
    main = next((dtype for dtype, _ in sizes.most_common() if dtype in DTYPES), "F32")
    return DTYPES[main]
