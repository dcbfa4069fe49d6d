"""Generated quantised checkpoints of a Llama's shapes, or gpt-oss': random codes and scales, no network.

python benchmarks/quantised_models.py fp8|nf4|int4|mxfp4 PATH LAYERS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from models import HIDDEN, LINEARS, SIZES, VOCAB
from safetensors.torch import save_file

from surgery.lazy.tables import NF4

Tensors = dict[str, torch.Tensor]
PER_SHARD = 4  # layers


def codes(shape: tuple[int, ...], most: int, generator: torch.Generator) -> torch.Tensor:
    """Random bytes up to `most`."""
    return torch.randint(0, most + 1, shape, dtype=torch.uint8, generator=generator)


def fp8(name: str, rows: int, columns: int, generator: torch.Generator) -> Tensors:
    """Blocks of 128 x 128."""
    scales = torch.rand(-(-rows // 128), -(-columns // 128), generator=generator) / 448
    return {name: codes((rows, columns), 126, generator).view(torch.float8_e4m3fn), f"{name}_scale_inv": scales}


def nf4(name: str, rows: int, columns: int, generator: torch.Generator) -> Tensors:
    """Blocks of 64, as bitsandbytes saves them."""
    state = json.dumps({"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, columns]})
    return {
        name: codes((rows * columns // 2, 1), 255, generator),
        f"{name}.absmax": torch.rand(rows * columns // 64, generator=generator),
        f"{name}.quant_map": torch.tensor(NF4),
        f"{name}.quant_state.bitsandbytes__nf4": torch.tensor(list(state.encode()), dtype=torch.uint8),
    }


def int4(name: str, rows: int, columns: int, generator: torch.Generator) -> Tensors:
    """compressed-tensors' packed integers, groups of 128."""
    module = name.removesuffix(".weight")
    return {
        f"{module}.weight_packed": codes((rows, columns // 2), 255, generator).view(torch.int32),
        f"{module}.weight_scale": (torch.rand(rows, columns // 128, generator=generator) / 8).bfloat16(),
        f"{module}.weight_shape": torch.tensor([rows, columns]),
    }


GROUP = {"group_size": 128, "num_bits": 4, "strategy": "group", "symmetric": True, "type": "int"}
SAID: dict[str, dict[str, Any]] = {
    "fp8": {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic", "fmt": "e4m3"},
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": "bfloat16", "_load_in_4bit": True},
    "int4": {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
             "quantization_status": "compressed",
             "config_groups": {"group_0": {"targets": ["Linear"], "weights": GROUP, "format": "pack-quantized"}}},
    "mxfp4": {"quant_method": "mxfp4"},
}  # fmt: skip
MAKE = {"fp8": fp8, "nf4": nf4, "int4": int4}


def layers(scheme: str, count: int) -> Iterator[Tensors]:
    """The tensors of each layer; the first has those that are not quantised along."""
    generator = torch.Generator().manual_seed(0)
    plain = {
        "model.embed_tokens.weight": (VOCAB, HIDDEN),
        "lm_head.weight": (VOCAB, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(count):
        prefix = f"model.layers.{layer}."
        norms = {f"{prefix}{n}.weight": (HIDDEN,) for n in ("input_layernorm", "post_attention_layernorm")}
        made = {n: torch.ones(s, dtype=torch.bfloat16) for n, s in ({**plain, **norms} if not layer else norms).items()}
        for module, (rows, columns) in LINEARS.items():
            made |= MAKE[scheme](f"{prefix}{module}.weight", rows, columns, generator)
        yield made


def experts(count: int) -> Iterator[Tensors]:
    """gpt-oss: experts of a layer in one tensor of codes, (experts, out, groups, 16), and one of scales."""
    generator, wide, number = torch.Generator().manual_seed(0), 1440, 8
    yield {"model.embed_tokens.weight": torch.ones(20_000, wide, dtype=torch.bfloat16)}
    for layer in range(count):
        prefix = f"model.layers.{layer}.mlp.experts."
        made: Tensors = {}
        for name, rows in (("gate_up_proj", 2 * wide), ("down_proj", wide)):
            made[f"{prefix}{name}_blocks"] = codes((number, rows, wide // 32, 16), 255, generator)
            made[f"{prefix}{name}_scales"] = codes((number, rows, wide // 32), 9, generator) + 115
            made[f"{prefix}{name}_bias"] = torch.zeros(number, rows, dtype=torch.bfloat16)
        yield made


def write(scheme: str, path: Path, count: int) -> None:
    """Write the checkpoint."""
    path.mkdir(parents=True)
    pending: Tensors = {}
    index: dict[str, str] = {}
    source = experts(count) if scheme == "mxfp4" else layers(scheme, count)
    for number, made in enumerate(source):
        pending |= made
        if number % PER_SHARD == PER_SHARD - 1 or number == count - (scheme != "mxfp4"):
            shard = f"model-{number:05}.safetensors"
            save_file(pending, path / shard, metadata={"format": "pt"})
            index |= dict.fromkeys(pending, shard)
            pending = {}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    config: dict[str, object] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **SIZES}
    if scheme == "mxfp4":
        config = {"model_type": "gpt_oss", "hidden_size": 1440, "intermediate_size": 1440, "num_local_experts": 8}
    config |= {"num_hidden_layers": count, "dtype": "bfloat16", "quantization_config": SAID[scheme]}
    (path / "config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
