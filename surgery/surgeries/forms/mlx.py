"""An adapter as mlx-lm's `adapters.safetensors` and adapter_config.json: A and B transposed, one scale for all.

`lora_parameters.keys` are the whole names of the modules, which mlx-lm looks for in the model, so that it puts LoRA on
these and on no others. One rank and one scale stand for all modules: an adapter with several is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from ...adapters.low_rank import EMBEDDING, Factors, as_low_rank, factors_of
from ...checkpoint import Checkpoint
from ...errors import NotSupported, listed
from ...files.peft import CONFIG, Adapter
from ...lazy.tensor import Tensor, permute
from ...names import natural

FILE = "adapters.safetensors"


def to_mlx(adapter: Adapter) -> Checkpoint:
    """The adapter's tensors and config as mlx-lm loads them. Raises NotSupported for what they cannot say."""
    plain = as_low_rank(adapter)
    factors = {module: factors_of(plain, module) for module in sorted(plain.lora, key=natural)}
    _check(plain, factors)
    tensors: dict[str, Tensor] = {}
    for module, one in factors.items():
        tensors |= {f"{module}.lora_a": permute(one.a, (1, 0)), f"{module}.lora_b": permute(one.b, (1, 0))}
        tensors |= {f"{module}.m": magnitude for magnitude in one.rest.values()}
    first = next(iter(factors.values()))
    dora = any(one.rest for one in factors.values())
    said = {"rank": first.rank, "scale": first.scale, "dropout": 0.0, "keys": list(factors)}
    config = {"fine_tune_type": "dora" if dora else "lora", "num_layers": _layers(factors), "lora_parameters": said}
    return Checkpoint(
        path=adapter.path,
        tensors=tensors,
        weight_map=dict.fromkeys(tensors, FILE),
        metadata={FILE: None},
        files={CONFIG: json.dumps(config, indent=4).encode()},
        inputs=plain.inputs,
        stem="adapters",
        index_name=f"{FILE}.index.json",
        dropped=plain.dropped,
        notes=plain.notes,
    )


def _check(plain: Adapter, factors: Mapping[str, Factors]) -> None:
    """Raise NotSupported for what a file of MLX does not hold."""
    scales = sorted({(one.rank, one.scale) for one in factors.values()})
    if len(scales) > 1:
        rows = [f"rank {rank}, scale {scale:g}" for rank, scale in scales]
        tip = "merge it into the base, and convert the model with MLX"
        raise NotSupported(
            "MLX has one rank and one scale for all modules", where=[plain.path, *listed(rows)], help=tip
        )
    kinds = {
        "weights held whole": sorted(plain.whole),
        "biases of B": [module for module, one in factors.items() if one.bias is not None],
        "experts in one tensor": [module for module, one in factors.items() if one.experts > 1],
        "LoRA on single experts": [module for module in factors if ".experts." in module],
        "convolutions": [module for module, one in factors.items() if len(one.a.shape) > 2],
        "DoRA on embeddings": [m for m, one in factors.items() if one.parts == EMBEDDING and one.rest],
    }
    for what, found in kinds.items():
        if found:
            tip = "merge it into the base, and convert the model with MLX"
            raise NotSupported(f"MLX's adapters have no {what}", where=[plain.path, *listed(found)], help=tip)
    if not factors:
        raise NotSupported("the adapter has no LoRA", where=[plain.path], help="give one that has")


def _layers(factors: Mapping[str, Factors]) -> int:
    """How many layers have LoRA."""
    return len({part for module in factors for part in module.split(".") if part.isdigit()})
