"""AdaLoRA: W + scale * B @ diag(E) @ A, of singular vectors and values; ranks were taken away in training, module by
module.

    lora_A (r, in), lora_E (r, 1), lora_B (out, r), without `.weight`; scale = lora_alpha / (init_r + 1e-5), or r in
    the place of an alpha that is not above 0. rank_pattern maps `module.lora_E` to which of the init_r ranks were
    kept, r of them; else r = init_r.

It is LoRA with diag(E) @ A for its A. Source: peft 0.21.2, tuners/adalora/layer.py, model.py
`resize_modules_by_rank_pattern`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import AdapterError, NotSupported
from ..files.peft import Adapter, base_name
from ..lazy.dtypes import ARITHMETIC, F32
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Tensor, Zeros, add, concat, narrow, reshape
from .fused import Rank, config_with

PARTS = {"lora_A", "lora_B", "lora_E"}
_SMALL = 1e-5  # which PEFT adds to the rank that it divides by


def as_lora(adapter: Adapter) -> Adapter:
    """An AdaLoRA adapter as the LoRA that it is, any other as it is. Modules of which no rank is left are dropped by
    name.

    Raises AdapterError where the config contradicts the tensors.
    """
    if adapter.config.get("peft_type") != "ADALORA":
        return adapter
    kept = _kept(adapter)
    ranks, lora, names = dict[str, Rank](), dict[str, dict[str, Tensor]](), dict(adapter.names)
    empty: dict[str, Tensor] = {}
    for module, parts in adapter.lora.items():
        rank = _rank(adapter, module, kept)
        if not rank.r:
            empty |= {adapter.names[f"{module}.{part}"]: tensor for part, tensor in parts.items()}
            continue
        ranks[module] = rank
        lora[module] = {"lora_A.weight": _scaled(parts["lora_E"], parts["lora_A"]), "lora_B.weight": parts["lora_B"]}
        names |= {f"{module}.{part}.weight": adapter.names[f"{module}.{part}"] for part in ("lora_A", "lora_B")}
    config = config_with({**adapter.config, "peft_type": "LORA", "use_rslora": False}, ranks)
    return replace(adapter, config=config, lora=lora, names=names, dropped={**adapter.dropped, **empty})


def _kept(adapter: Adapter) -> dict[str, int]:
    """How many ranks were kept, by module, as rank_pattern says."""
    pattern = adapter.config.get("rank_pattern") or {}
    if not isinstance(pattern, Mapping) or not all(isinstance(mask, list) for mask in pattern.values()):
        where = [f"{adapter.path}/adapter_config.json", f"rank_pattern = {pattern!r}"]
        raise AdapterError(
            "the rank_pattern of an AdaLoRA adapter is no table of kept ranks", where=where, help="restore the file"
        )
    return {re.sub(r"\.lora_E(?:\..+)?$", "", base_name(name)): sum(map(bool, mask)) for name, mask in pattern.items()}


def _rank(adapter: Adapter, module: str, kept: Mapping[str, int]) -> Rank:
    """Rank and alpha of a module, as LoRA has them; what is stored is of that rank."""
    config, parts = adapter.config, adapter.lora[module]
    where = [f"{adapter.path}: {adapter.names[f'{module}.{next(iter(parts))}']}"]
    if set(parts) != PARTS:
        what = f"AdaLoRA with {', '.join(sorted(parts))} is no lora_A, lora_B and lora_E"
        raise AdapterError(what, where=where, help="the adapter file is incomplete: save it again")
    first = _number(adapter, config, "init_r", 12)
    alpha = _number(adapter, config, "lora_alpha", 8)
    rank = kept.get(module, int(first))
    a, b, e = (parts[part] for part in sorted(PARTS))
    if any(factor.dtype not in ARITHMETIC for factor in (a, b, e)):
        tip = "save the adapter in float32, float16 or bfloat16"
        raise NotSupported(
            f"adapter tensors of {a.dtype}, {b.dtype} and {e.dtype} are not supported", where=where, help=tip
        )
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != rank or b.shape[1] != rank or e.shape != (rank, 1):
        raise AdapterError(
            f"adapter_config.json says rank {rank}, but lora_A is {a.shape}, lora_B {b.shape} and lora_E {e.shape}",
            where=where,
            help="init_r or rank_pattern is not this adapter's; the scale depends on it, so it is not guessed",
        )
    return Rank(rank, (alpha if alpha > 0 else rank) / (first + _SMALL) * rank)


def _number(adapter: Adapter, config: Mapping[str, Any], key: str, default: int) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or (key == "init_r" and value <= 0):
        where = [f"{adapter.path}/adapter_config.json", f"{key} = {value!r}"]
        raise AdapterError(
            "the adapter's rank or alpha is not a number", where=where, help="restore the file from the training"
        )
    return value


def _scaled(values: Tensor, a: Tensor) -> Tensor:
    """diag(values) @ a, in float32: each row of `a` times its singular value."""
    rank = a.shape[0]
    # The values in the first of r + 1 columns, the rest zeros: read in rows of r, they lie on the diagonal.
    spread = concat([values, Zeros(values.dtype, (rank, rank))], 1)
    diagonal = reshape(narrow(reshape(spread, (spread.size,)), 0, 0, rank * rank), (rank, rank))
    return add(Zeros(F32, a.shape), [LowRank(diagonal, a, 1.0)])
