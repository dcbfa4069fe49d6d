"""Generated checkpoints: real shapes and names, random bfloat16 values, no network.

python benchmarks/models.py llama PATH [SHARD_SIZE]     1.1 B parameters, 2.2 GB (TinyLlama's sizes)
python benchmarks/models.py phi3 PATH [SHARD_SIZE]      the same sizes with fused qkv and gate_up
python benchmarks/models.py gpt_neox PATH [SHARD_SIZE]  1.0 B parameters with per-head qkv
python benchmarks/models.py gpt2 PATH [SHARD_SIZE]      1.2 B parameters of Conv1D
python benchmarks/models.py falcon PATH [SHARD_SIZE]    1.1 B parameters with grouped qkv
python benchmarks/models.py gpt_oss PATH [SHARD_SIZE]   1.1 B parameters of stacked experts, gate and up interleaved
python benchmarks/models.py one PATH                    one tensor of 2 GB
python benchmarks/models.py adapter PATH RANK TARGETS [LAYERS]  a PEFT adapter for the llama, float32
python benchmarks/models.py huge PATH                   1.3 TB in 163 shards of sparse files, 90,000 tensors
python benchmarks/models.py thousand PATH               1,000 shards of sparse files
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from surgery.files.index import encode_index
from surgery.files.safetensors import encode_header
from surgery.hub.shards import split_into_shards
from surgery.lazy.dtypes import BF16
from surgery.planning.sharding import parse_size

Shapes = dict[str, tuple[int, ...]]
HIDDEN, WIDE, LAYERS, HEADS, KV, VOCAB = 2048, 5632, 22, 32, 4, 32000
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN * KV // HEADS, HIDDEN),
    "self_attn.v_proj": (HIDDEN * KV // HEADS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (WIDE, HIDDEN),
    "mlp.up_proj": (WIDE, HIDDEN),
    "mlp.down_proj": (HIDDEN, WIDE),
}
SIZES = {
    "hidden_size": HIDDEN, "intermediate_size": WIDE, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "num_key_value_heads": KV, "vocab_size": VOCAB, "dtype": "bfloat16", "tie_word_embeddings": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama() -> tuple[dict[str, object], Shapes]:
    """TinyLlama's shapes."""
    shapes: Shapes = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in LINEARS.items()}
        shapes |= {
            f"model.layers.{layer}.{name}.weight": (HIDDEN,) for name in ("input_layernorm", "post_attention_layernorm")
        }
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 2048,
        **SIZES,
    }, shapes


def phi3() -> tuple[dict[str, object], Shapes]:
    """The same model with fused projections."""
    _, shapes = llama()
    fused = {
        n: s
        for n, s in shapes.items()
        if not n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "up_proj.weight"))
    }
    for layer in range(LAYERS):
        fused[f"model.layers.{layer}.self_attn.qkv_proj.weight"] = (HIDDEN + 2 * HIDDEN * KV // HEADS, HIDDEN)
        fused[f"model.layers.{layer}.mlp.gate_up_proj.weight"] = (2 * WIDE, HIDDEN)
    return {"model_type": "phi3", "architectures": ["Phi3ForCausalLM"], "max_position_embeddings": 2048, **SIZES}, fused


def gpt_neox() -> tuple[dict[str, object], Shapes]:
    """Pythia-1B's shapes."""
    hidden, wide, layers, heads = 2048, 8192, 16, 8
    shapes: Shapes = {"gpt_neox.embed_in.weight": (50304, hidden), "embed_out.weight": (50304, hidden)}
    for layer in range(layers):
        name = f"gpt_neox.layers.{layer}."
        for module, out, into in (
            ("attention.query_key_value", 3 * hidden, hidden), ("attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", wide, hidden), ("mlp.dense_4h_to_h", hidden, wide),
        ):  # fmt: skip
            shapes |= {f"{name}{module}.weight": (out, into), f"{name}{module}.bias": (out,)}
    config = {
        "model_type": "gpt_neox",
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
    }
    return config, shapes


def gpt2() -> tuple[dict[str, object], Shapes]:
    """GPT-2's Conv1D, a little wider than XL, so that rows are short runs of 3.2 kB."""
    hidden, layers = 1600, 36
    shapes: Shapes = {"wte.weight": (50257, hidden), "wpe.weight": (1024, hidden)}
    for layer in range(layers):
        for module, into, out in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ):
            shapes |= {f"h.{layer}.{module}.weight": (into, out), f"h.{layer}.{module}.bias": (out,)}
    return {"model_type": "gpt2", "n_embd": hidden, "n_layer": layers, "n_head": 25}, shapes


def falcon() -> tuple[dict[str, object], Shapes]:
    """Falcon's new architecture: groups of 8 heads of q, one of k, one of v, 64 rows each."""
    hidden, layers, heads, kv = 2048, 20, 32, 4
    shapes: Shapes = {"transformer.word_embeddings.weight": (65024, hidden), "lm_head.weight": (65024, hidden)}
    for layer in range(layers):
        name = f"transformer.h.{layer}."
        shapes[f"{name}self_attention.query_key_value.weight"] = ((heads + 2 * kv) * 64, hidden)
        shapes[f"{name}self_attention.dense.weight"] = (hidden, hidden)
        shapes[f"{name}mlp.dense_h_to_4h.weight"] = (4 * hidden, hidden)
        shapes[f"{name}mlp.dense_4h_to_h.weight"] = (hidden, 4 * hidden)
    config = {"model_type": "falcon", "hidden_size": hidden, "num_attention_heads": heads, "num_kv_heads": kv}
    return {**config, "new_decoder_architecture": True, "num_hidden_layers": layers}, shapes


def gpt_oss() -> tuple[dict[str, object], Shapes]:
    """gpt-oss: 32 experts in one tensor, (experts, in, 2 * wide), where gate and up take turns on the last axis."""
    hidden, wide, layers, experts = 1440, 1440, 5, 32
    shapes: Shapes = {"model.embed_tokens.weight": (20000, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}.mlp.experts."
        shapes[f"{name}gate_up_proj"] = (experts, hidden, 2 * wide)
        shapes[f"{name}gate_up_proj_bias"] = (experts, 2 * wide)
        shapes[f"{name}down_proj"] = (experts, wide, hidden)
        shapes[f"{name}down_proj_bias"] = (experts, hidden)
    return {
        "model_type": "gpt_oss",
        "hidden_size": hidden,
        "intermediate_size": wide,
        "num_local_experts": experts,
    }, shapes


def one() -> tuple[dict[str, object], Shapes]:
    """A single tensor of 2 GB."""
    return {"model_type": "llama"}, {"model.layers.0.mlp.up_proj.weight": (500_000, 2000)}


def huge() -> tuple[dict[str, object], Shapes]:
    """A 1.3 TB mixture of experts with a fused qkv: 61 layers of 488 experts, three matrices each, about 90,000
    tensors.
    """
    hidden, wide, layers, experts = 7168, 1040, 61, 488
    shapes: Shapes = {"model.embed_tokens.weight": (160_000, hidden), "lm_head.weight": (160_000, hidden)}
    for layer in range(layers):
        name = f"model.layers.{layer}."
        shapes[f"{name}self_attn.qkv_proj.weight"] = (64 * 128 + 2 * 8 * 128, hidden)
        shapes[f"{name}self_attn.o_proj.weight"] = (hidden, 64 * 128)
        shapes |= {f"{name}{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        for expert in range(experts):
            for matrix, shape in (
                ("gate_proj", (wide, hidden)),
                ("up_proj", (wide, hidden)),
                ("down_proj", (hidden, wide)),
            ):
                shapes[f"{name}mlp.experts.{expert}.{matrix}.weight"] = shape
    config = {
        "model_type": "phi3",
        "hidden_size": hidden,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    return config, shapes


def thousand() -> tuple[dict[str, object], Shapes]:
    """100,000 tensors in 1,000 shards."""
    return {"model_type": "llama"}, {
        f"model.layers.{i // 100}.mlp.experts.{i % 100}.up_proj.weight": (1000, 1000) for i in range(100_000)
    }


MADE = {"llama": llama, "phi3": phi3, "gpt_neox": gpt_neox, "gpt2": gpt2}
MADE |= {"falcon": falcon, "gpt_oss": gpt_oss, "one": one, "huge": huge, "thousand": thousand}


def noise(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes of bfloat16 from a normal distribution, 1/50 wide."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for start in range(0, size, 32 << 20):
        count = min(32 << 20, size - start) // 2
        values = (torch.randn(count, generator=generator) * 0.02).bfloat16()
        yield values.view(torch.uint8).numpy().tobytes()


def write(name: str, path: Path, shard_size: str | None) -> None:
    """Write the checkpoint `name`; sparse files where it is only looked at."""
    config, shapes = MADE[name]()
    sparse = name in ("huge", "thousand")
    sizes = {n: 2 * _product(s) for n, s in shapes.items()}
    size = {"huge": "8.3GB", "thousand": "200MB"}.get(name, shard_size or "1TB")
    layout = split_into_shards(sizes, parse_size(size), "model")
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    members: dict[str, list[str]] = {}
    for tensor, shard in layout.items():
        members.setdefault(shard, []).append(tensor)
    for seed, (shard, names) in enumerate(members.items()):
        header = encode_header({n: (BF16, shapes[n]) for n in names}, {"format": "pt"})
        with open(path / shard, "wb") as stream:
            stream.write(header)
            total = sum(sizes[n] for n in names)
            if sparse:
                os.truncate(stream.fileno(), len(header) + total)
            else:
                for data in noise(total, seed):
                    stream.write(data)
    if len(members) > 1:
        (path / "model.safetensors.index.json").write_bytes(encode_index({"total_size": sum(sizes.values())}, layout))


def write_adapter(path: Path, rank: int, targets: list[str], layers: int = LAYERS) -> None:
    """A PEFT adapter for the llama, or for one of so many layers."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(layers):
        for module, (out, into) in LINEARS.items():
            if module.rpartition(".")[2] in targets:
                name = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
                tensors[f"{name}.lora_B.weight"] = torch.randn(out, rank, generator=generator) * 0.0005
    path.mkdir(parents=True)
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": targets,
        "bias": "none",
    }
    (path / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


if __name__ == "__main__":
    if sys.argv[1] == "adapter":
        layers = int(sys.argv[5]) if len(sys.argv) > 5 else LAYERS
        write_adapter(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","), layers)
    else:
        write(sys.argv[1], Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else None)
