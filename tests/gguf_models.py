"""Tiny models of transformers, and their GGUF as `convert_hf_to_gguf.py` of llama.cpp writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf_files import coded, laced, write

Arrays = dict[str, np.ndarray]
NONE: Mapping[str, Any] = {}
SIZE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "rms_norm_eps": 1e-5,
}
GPT = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_inner": 256}
KEYS = {
    "context_length": 64,
    "block_count": 2,
    "embedding_length": 64,
    "feed_forward_length": 128,
    "attention.head_count": 4,
}
RMS = {"attention.layer_norm_rms_epsilon": 1e-5, "attention.head_count_kv": 2}
EPSILON = {"attention.layer_norm_epsilon": 1e-5, "attention.head_count_kv": 2}


def as_it_is(arrays: Arrays) -> Arrays:
    return arrays


def llama(arrays: Arrays) -> Arrays:
    heads = {".attn_q.": 4, ".attn_k.": 2}
    return {
        name: next((laced(one, n) for part, n in heads.items() if part in name), one) for name, one in arrays.items()
    }


def one_more(arrays: Arrays) -> Arrays:
    return {name: one + 1 if name.endswith("norm.weight") else one for name, one in arrays.items()}


def gpt2(arrays: Arrays) -> Arrays:
    turned = ("attn_qkv.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
    return {name: one.T.copy() if name.endswith(turned) else one for name, one in arrays.items()}


def bloom(arrays: Arrays) -> Arrays:
    def apart(one: np.ndarray) -> np.ndarray:
        return one.reshape(4, 3, 16, *one.shape[1:]).swapaxes(0, 1).reshape(one.shape)

    return {name: apart(one) if ".attn_qkv." in name else one for name, one in arrays.items()}


def experts(arrays: Arrays) -> Arrays:
    """Of experts that transformers keeps in one tensor: gate and up apart."""
    found = Arrays()
    for name, one in arrays.items():
        if "gate_up" in name:
            found[name.replace("gate_up", "gate")], found[name.replace("gate_up", "up")] = np.split(one, 2, 1)
        else:
            found[name] = one[0] if name.endswith("ffn_gate_inp_shexp.weight") else one
    return found


@dataclass(frozen=True)
class Tiny:
    """A model: its class of transformers and that of its config, and what its GGUF has."""

    loader: str
    config: str
    keys: Mapping[str, Any]
    sizes: Mapping[str, Any] = field(default_factory=lambda: SIZE)
    convert: Callable[[Arrays], Arrays] = as_it_is


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
MODELS = {
    "llama": Tiny("LlamaForCausalLM", "LlamaConfig", RMS | {"rope.dimension_count": 16}, convert=llama),
    "qwen2": Tiny("Qwen2ForCausalLM", "Qwen2Config", RMS),
    "qwen3": Tiny("Qwen3ForCausalLM", "Qwen3Config", RMS | {"attention.key_length": 128}, SIZE | {"head_dim": 128}),
    "qwen2moe": Tiny(
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        RMS | {"expert_count": 4, "expert_used_count": 2},
        SIZE | MOE | {"moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632},
        experts,
    ),
    "qwen3moe": Tiny(
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        RMS | {"attention.key_length": 16, "expert_count": 4, "expert_used_count": 2},
        SIZE | MOE | {"head_dim": 16, "moe_intermediate_size": 768, "norm_topk_prob": True},
        experts,
    ),
    "gemma2": Tiny(
        "Gemma2ForCausalLM",
        "Gemma2Config",
        RMS | {"attention.key_length": 16, "attention.sliding_window": 32},
        SIZE | {"head_dim": 16},
        one_more,
    ),
    "gemma3": Tiny(
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        RMS | {"attention.key_length": 16, "attention.sliding_window": 32},
        SIZE | {"head_dim": 16},
        one_more,
    ),
    "phi3": Tiny("Phi3ForCausalLM", "Phi3Config", RMS | {"rope.dimension_count": 16}),
    "starcoder2": Tiny("Starcoder2ForCausalLM", "Starcoder2Config", EPSILON),
    "stablelm": Tiny("StableLmForCausalLM", "StableLmConfig", EPSILON | {"rope.dimension_count": 4}),
    "nemotron": Tiny(
        "NemotronForCausalLM", "NemotronConfig", EPSILON | RMS | {"rope.dimension_count": 8}, convert=one_more
    ),
    "gpt2": Tiny(
        "GPT2LMHeadModel", "GPT2Config", EPSILON | {"feed_forward_length": 256, "context_length": 1024}, GPT, gpt2
    ),
    "bloom": Tiny(
        "BloomForCausalLM",
        "BloomConfig",
        EPSILON,
        {"vocab_size": 96, "hidden_size": 64, "n_layer": 2, "n_head": 4},
        bloom,
    ),
}


def tiny(arch: str, **changes: Any) -> torch.nn.Module:
    """The model of an architecture, with random weights."""
    row = MODELS[arch]
    config = getattr(transformers, row.config)(**{**row.sizes, "tie_word_embeddings": False, **changes})
    torch.manual_seed(0)
    model = getattr(transformers, row.loader)(config)
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.05)
    return model.eval()


def arrays_of(model: torch.nn.Module, arch: str) -> Arrays:
    """Its tensors as they lie in a GGUF, in float32."""
    number = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names, found = gguf.get_tensor_name_map(number, 2), Arrays()
    tied = model.config.tie_word_embeddings
    for called, tensor in model.state_dict().items():
        module, dot, last = called.rpartition(".")
        if last not in ("weight", "bias"):
            module, dot, last = called, ".", "weight"
        if tied and module == "lm_head":
            continue
        name = names.get_name(module) or names.get_name(module.removeprefix("transformer.")) or _of_experts(module)
        if name:
            found[f"{name}{dot}{last}"] = tensor.float().numpy().copy()
    return MODELS[arch].convert(found) if arch in MODELS else found


def _of_experts(module: str) -> str | None:
    layer = module.split(".")[2] if module.endswith("mlp.experts.gate_up_proj") else None
    return f"blk.{layer}.ffn_gate_up_exps" if layer else None


def as_gguf(
    model: torch.nn.Module,
    arch: str,
    path: Path,
    kind: str = "F32",
    said: Mapping[str, Any] = NONE,
    more: Mapping[str, Any] = NONE,
    split_max_tensors: int = 0,
    **keys: Any,
) -> Path:
    """The model in a GGUF file: matrices of `kind`, all else in float32; `keys` of the architecture, `said` others."""
    path.parent.mkdir(exist_ok=True)
    metadata = {f"{arch}.{key}": value for key, value in {**KEYS, **MODELS[arch].keys, **keys}.items()}
    metadata |= {"tokenizer.ggml.tokens": [f"t{n}" for n in range(96)], **said}
    tensors: dict[str, Any] = {}
    for name, one in arrays_of(model, arch).items():
        wide = len(one.shape) > 1 and kind != "F32"
        tensors[name] = coded(np.ascontiguousarray(one), kind) if wide else one
    return write(path, arch, metadata, {**tensors, **more}, split_max_tensors=split_max_tensors)
