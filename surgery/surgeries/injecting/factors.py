"""The tensors of an injected adapter: A drawn as PEFT draws it, B zero, in the shapes that a module's kind has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...adapters.lora import pattern
from ...checkpoint import Checkpoint
from ...lazy.dtypes import F32
from ...lazy.tensor import Norms, Random, Sum, Tensor, Zeros, reshape
from .modules import Kind, Module
from .parameters import Parameter


def rank_of(config: Mapping[str, Any], name: str) -> int:
    return int(pattern(config["rank_pattern"], name, config["r"]))


def factors(base: Checkpoint, name: str, module: Module, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    shape, rank, key = module.shape, rank_of(config, name), f"{seed} {name}"
    if module.kind is Kind.CONVOLUTION:
        return _on_convolution(base, module, rank, key, config)
    columns = module.kind in (Kind.EMBEDDING, Kind.CONV1D)
    magnitude = (
        {"lora_magnitude_vector": Norms(Sum(F32, base.tensors[module.weight]), columns)} if config["use_dora"] else {}
    )
    if module.kind is Kind.EMBEDDING:
        b = Random((shape[1], rank), key, 1.0, normal=True)
        return {"lora_embedding_A": Zeros(F32, (rank, shape[0])), "lora_embedding_B": b, **magnitude}
    out, into = shape[::-1] if columns else shape
    bias = {"lora_B.bias": Zeros(F32, (out,))} if config["lora_bias"] else {}
    a = _drawn((rank, into), rank, key, config)
    return {"lora_A.weight": a, "lora_B.weight": Zeros(F32, (out, rank)), **bias, **magnitude}


def _on_convolution(
    base: Checkpoint, module: Module, rank: int, key: str, config: Mapping[str, Any]
) -> dict[str, Tensor]:
    """A convolves with the kernel and is not grouped, B is pointwise and is (peft 0.21.2, tuners/lora/layer.py
    `_ConvNd`).
    """
    out, into, *kernel = module.shape
    ones = (1,) * len(kernel)
    found: dict[str, Tensor] = {"lora_A.weight": _drawn((rank, into * module.groups, *kernel), rank, key, config)}
    found["lora_B.weight"] = Zeros(F32, (out, rank // module.groups, *ones))
    if config["lora_bias"]:
        found["lora_B.bias"] = Zeros(F32, (out,))
    if config["use_dora"]:
        rows = reshape(base.tensors[module.weight], (out, into * math.prod(kernel)))
        found["lora_magnitude_vector"] = reshape(Norms(Sum(F32, rows)), (1, out, *ones))
    return found


def on_parameter(parameter: Parameter, config: Mapping[str, Any], seed: int) -> dict[str, Tensor]:
    rank = rank_of(config, parameter.name)
    a = _drawn((parameter.experts * rank, parameter.into), rank, f"{seed} {parameter.name}", config)
    return {"lora_A.weight": a, "lora_B.weight": Zeros(F32, (parameter.out, rank * parameter.experts))}


def _drawn(shape: tuple[int, ...], rank: int, key: str, config: Mapping[str, Any]) -> Tensor:
    """lora_A as PEFT draws it: uniform within 1 / √(what one output sees), as nn.Linear, or normal with deviation 1
    / rank.
    """
    gaussian = config["init_lora_weights"] == "gaussian"
    return Random(shape, key, 1 / rank if gaussian else 1 / math.sqrt(math.prod(shape[1:])), normal=gaussian)
