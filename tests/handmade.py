"""Checkpoints and adapters written by hand from random bytes: of any size, fast; without torch, but for `tamed`."""

from __future__ import annotations

import json
import math
import random
from array import array
from collections.abc import Mapping
from pathlib import Path

BITS = {"F4": 4, "U8": 8, "I8": 8, "F16": 16, "BF16": 16, "F32": 32, "F64": 64}


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]], *, seed: int = 0) -> None:
    """A safetensors file of `tensors`, name -> (dtype, shape). F32 holds numbers around 1, other dtypes random bits."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        stop = at + math.prod(shape) * BITS[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    source = random.Random(seed)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for dtype, shape in tensors.values():
            size = math.prod(shape)
            if dtype == "F32":
                stream.write(array("f", (source.uniform(-1, 1) for _ in range(size))).tobytes())
            else:
                stream.write(source.randbytes(size * BITS[dtype] // 8))


def write_phi3(folder: Path, *, layers: int, hidden: int, heads: int = 8, seed: int = 0) -> Path:
    """A Phi-3 in BF16, a shard for each layer: q, k and v are fused, with half as many heads of k and v as of q."""
    folder.mkdir(parents=True)
    weight_map = {}
    for i in range(layers):
        module, shard = f"model.layers.{i}", f"model-{i + 1:05}-of-{layers:05}.safetensors"
        tensors = {
            f"{module}.input_layernorm.weight": ("BF16", (hidden,)),
            f"{module}.self_attn.qkv_proj.weight": ("BF16", (2 * hidden, hidden)),
            f"{module}.self_attn.o_proj.weight": ("BF16", (hidden, hidden)),
            f"{module}.mlp.gate_up_proj.weight": ("BF16", (3 * hidden, hidden)),
        }
        write_tensors(folder / shard, tensors, seed=seed + i)
        weight_map |= dict.fromkeys(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config = {
        "model_type": "phi3", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": heads // 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def tamed(folder: Path) -> Path:
    """The checkpoint with numbers about 1 in place of random bits."""
    import torch
    from safetensors.torch import load_file, save_file

    drawn = torch.Generator().manual_seed(0)
    for path in folder.glob("*.safetensors"):
        tensors = {name: torch.randn(t.shape, generator=drawn).to(t.dtype) for name, t in load_file(path).items()}
        save_file(tensors, path, {"format": "pt"})
    return folder


def write_adapter(folder: Path, modules: Mapping[str, tuple[int, int]], *, rank: int = 4, seed: int = 0) -> Path:
    """A LoRA adapter in F32 on `modules`, name -> (out, in) of the base weight."""
    folder.mkdir(parents=True)
    tensors = {}
    for module, (out, into) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = ("F32", (rank, into))
        tensors[f"base_model.model.{module}.lora_B.weight"] = ("F32", (out, rank))
    write_tensors(folder / "adapter_model.safetensors", tensors, seed=seed)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank}))
    return folder
