"""Small models for pictures: a Llama of sixteen layers in bfloat16, and adapters on all of its linear layers that do
more in some layers than in others.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

LAYERS, HIDDEN, WIDE = 16, 256, 704
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "intermediate_size": WIDE,
    "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "vocab_size": 2000, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "dtype": "bfloat16",
}  # fmt: skip


def base(folder: Path, *, shards: int = 4) -> Path:
    """The model, in shards of four layers."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    weights = {"model.embed_tokens.weight": torch.randn(2000, HIDDEN) * 0.02}
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        weights |= {f"{at}.{name}.weight": torch.randn(shape) * 0.03 for name, shape in SHAPES.items()}
        weights |= {
            f"{at}.{name}.weight": torch.ones(HIDDEN) for name in ("input_layernorm", "post_attention_layernorm")
        }
    weights |= {"model.norm.weight": torch.ones(HIDDEN), "lm_head.weight": torch.randn(2000, HIDDEN) * 0.02}
    names, where = list(weights), {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        held = names[len(names) * shard // shards : len(names) * (shard + 1) // shards]
        save_file({name: weights[name].bfloat16() for name in held}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    return folder


def adapter(folder: Path, *, dora: bool = False, rank: int = 8) -> Path:
    """LoRA, or DoRA, that does most in the middle of the model, and more to v and down than to q and k."""
    torch.manual_seed(1)
    folder.mkdir(parents=True)
    weights = {}
    for layer in range(LAYERS):
        depth = 0.15 + math.exp(-(((layer - 9) / 4) ** 2))
        for at, (name, (out, into)) in enumerate(SHAPES.items()):
            much = depth * (0.3, 0.4, 1.0, 0.7, 0.5, 0.6, 1.2)[at] * 0.004
            decay = torch.arange(1, rank + 1) ** -0.7
            module = f"base_model.model.model.layers.{layer}.{name}"
            weights[f"{module}.lora_A.weight"] = torch.randn(rank, into) * decay[:, None]
            weights[f"{module}.lora_B.weight"] = torch.randn(out, rank) * much
            if dora:
                weights[f"{module}.lora_magnitude_vector"] = torch.rand(out) * 0.02 + 0.47
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": [n.split(".")[1] for n in SHAPES]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": dora}))
    return folder


def sabotage(folder: Path) -> None:
    """One delta twice as large, and one tensor that nothing should have touched."""
    for file in sorted(folder.glob("*.safetensors")):
        weights = load_file(file)
        for name in weights:
            if name.endswith("layers.5.self_attn.v_proj.weight"):
                weights[name] += 0.01
            if name.endswith("layers.11.mlp.up_proj.weight"):
                weights[name] = weights[name].roll(1, 0)
            if name.endswith("layers.3.input_layernorm.weight"):
                weights[name] *= 1.01
        save_file(weights, file, {"format": "pt"})
