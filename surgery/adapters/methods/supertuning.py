"""Super-Tuning: numbers at the places of the weight that are largest, or smallest; Supra: and LoRA beside them.

    supertuning_values (n), supertuning_indices (n), int32, counted row by row
    supertuning_lora_A.weight (r, in), supertuning_lora_B.weight (out, r): + lora_alpha / r * B @ A

Places that are not in the file would have to be chosen again by the size of the base's weights: another dtype, or two
of the same size, make others of them, and nothing would tell. Such a file is refused.
Source: peft 0.21.2, tuners/supertuning/layer.py `get_delta_weight`, config.py `__post_init__`.
"""

from __future__ import annotations

import math

from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.dtypes import DTYPES
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape
from .method import Effect, Method, Target, said
from .places import scattered

INTEGERS = tuple(DTYPES[name] for name in ("I32", "I64"))


def effect(target: Target) -> Effect:
    """What it does to the module."""
    values, places = target.part("supertuning_values", None), target.weight.size
    if "sparsity" in target.adapter.config and values.size != (made := _numbers(target.adapter, places)):
        said = target.adapter.config["sparsity"]
        what = f"sparsity = {said} makes {made} numbers of {places}, and supertuning_values has {values.size}"
        raise target.wrong(what, MEND)
    tip = (
        "they cannot be found again with certainty: save the adapter with save_precomputed_indices=True, or merge it"
        " with PEFT on the very weights that it was trained on"
    )
    sparse = scattered(target, "supertuning_indices", (values.size,), INTEGERS, values, tip)
    return Effect(deltas=(sparse, *_supra(target)))


def _supra(target: Target) -> tuple[LowRank, ...]:
    """The LoRA beside the numbers, where config and file have it."""
    a, b = "supertuning_lora_A.weight", "supertuning_lora_B.weight"
    if target.adapter.config.get("r") is None:
        if target.adapter.config.get("lora_alpha") is not None:
            raise target.wrong("adapter_config.json says lora_alpha, and no r", MEND)
        if found := [name for name in (a, b) if name in target.parts]:
            raise target.wrong(f"adapter_config.json says no r, but the module has {found[0]}", "restore it")
        return ()
    out, wide = target.weight.shape
    rank = int(target.number("r"))
    alpha = 2 * rank if target.adapter.config.get("lora_alpha") is None else target.number("lora_alpha")
    return (LowRank(target.part(b, out, rank), target.part(a, rank, wide), alpha / rank),)


def _numbers(adapter: Adapter, places: int) -> int:
    return int(places * (1 - adapter.config["sparsity"]))


def span(adapter: Adapter, module: str) -> Shape | None:
    """What the LoRA beside them tells, or else one row of as many places as there are such numbers of."""
    parts = adapter.lora[module]
    a, b = (parts.get(f"supertuning_lora_{which}.weight") for which in "AB")
    if a is not None and b is not None:
        return b.shape[0], a.shape[-1]
    values, left = parts.get("supertuning_values"), 1 - (adapter.config.get("sparsity") or 0)
    if values is None or not 0 < left < 1:
        return None
    near = math.ceil((values.size + 1) / left)
    return next(((1, size) for size in range(near + 1, near - 3, -1) if _numbers(adapter, size) == values.size), None)


METHOD = Method(
    "SUPERTUNING",
    "Super-Tuning, Supra",
    "numbers at places of the weight, which the file says; and LoRA beside them",
    effect,
    axes={"supertuning_lora_A.weight": ("r", "in"), "supertuning_lora_B.weight": ("out", "r")},
    span=span,
    options=said("sparsity select_top r lora_alpha lora_dropout init_weights save_precomputed_indices"),
    conv1d=False,
    layers="nn.Linear",
)
