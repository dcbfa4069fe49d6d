"""Kinds that are exactly low-rank by themselves, as LoRA: what they add is the product of two thin matrices, of which
both the sides and the numbers are in the adapter's own file.

    GRALORA (k * r + h), VBLORA, UNILORA with its places, TINYLORA      as their effect on a weight has it
    LOHA (r * r)        (a @ b) * (c @ d): columns of a times those of c, each with each, and rows of b times those of d

What a kind does is its row of `methods`: here is the weight's shape alone. Others are none: of VeRA, MiSS and RandLoRA
no file tells how wide a module is, DeLoRA and DEFT need the base's own weights, and the rest has a high rank.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..errors import AdapterError, NotSupported, series
from ..files.adapters.lora import is_embedding, numbers
from ..files.peft import Adapter
from ..lazy.change import Delta
from ..lazy.dense import Dense
from ..lazy.dtypes import F32
from ..lazy.hadamard import Hadamard
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Shape, Tensor, Zeros, add, concat, in_dtype, made, permute
from .methods import method_of
from .methods.method import Target

Sides = Callable[[Adapter, Mapping[str, Tensor]], Shape]
# What of the config is about which modules there are, and where they belong.
_KEPT = (
    "base_model_name_or_path revision task_type target_modules exclude_modules layers_to_transform layers_pattern"
    " modules_to_save fan_in_fan_out"
).split()


def as_lora(adapter: Adapter) -> Adapter | None:
    """The adapter as LoRA, where its kind is one of these; else None. Raises AdapterError, NotSupported."""
    sides, method = SIDES.get(str(adapter.config.get("peft_type"))), method_of(adapter)
    if sides is None or method is None:
        return None
    ready = method.prepared(adapter, lambda: 0)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module in ready.lora:
        _check_side(adapter, module)
        target = Target(ready, module, Zeros(F32, _sides(ready, module, sides)), None)
        pairs = [pair for delta in method.effect(target).deltas for pair in _thin(target, delta)]
        a, b = concat([right for _, right in pairs], 0), concat([left for left, _ in pairs], 1)
        lora[module] = {"lora_A.weight": a, "lora_B.weight": b}
        held = sorted(part for part in adapter.lora[module])
        names |= {f"{module}.lora_A.weight": ready.names[f"{module}.{held[0]}"]}
        names |= {f"{module}.lora_B.weight": ready.names[f"{module}.{held[-1]}"]}
        ranks[module] = (a.shape[0], a.shape[0])
    names |= {key: adapter.names[key] for key in adapter.whole}
    note = f"{adapter.path}: {method.name} as LoRA, exactly: {_said(ranks.values())}"
    return replace(
        adapter,
        config=_config(adapter, ranks),
        lora=lora,
        names=names,
        shared={},
        inputs=tuple(
            replace(one, partly=one.partly | (one.tensors.keys() - adapter.whole.keys())) for one in adapter.inputs
        ),
        notes=(*ready.notes, note),
    )


def _sides(adapter: Adapter, module: str, sides: Sides) -> Shape:
    """The weight's shape. Raises AdapterError where the parts do not tell it."""
    try:
        return sides(adapter, adapter.lora[module])
    except (LookupError, StopIteration) as error:
        what = f"the module's parts, {series(adapter.lora[module])}, do not tell its size"
        tip = "merge it into its base; what is not a plain linear module is not made LoRA by itself"
        raise NotSupported(what, where=[f"{adapter.path}: {module}"], help=tip) from error


def _check_side(adapter: Adapter, module: str) -> None:
    if is_embedding(module):
        what = f"{adapter.config['peft_type']} on an embedding is not made LoRA without its base"
        raise NotSupported(what, where=[f"{adapter.path}: {module}"], help="merge it into its base")


def _thin(target: Target, delta: Delta) -> list[tuple[Tensor, Tensor]]:
    """The delta as products of two thin matrices, the scale in the first, in float32. Raises AdapterError."""
    delta.check(target.weight.shape)
    match delta:
        case LowRank(left, right, scale):
            return [(_times(left, scale), in_dtype(right, F32))]
        case Hadamard((LowRank(a, b, one), LowRank(c, d, other)), None, scale):
            left, right = _crossed(permute(a, (1, 0)), permute(c, (1, 0))), _crossed(b, d)
            return [(_times(permute(left, (1, 0)), scale * one * other), right)]
    raise AdapterError(f"{target.module}: what it adds is no product of two thin matrices", where=target.where)


def _crossed(one: Tensor, other: Tensor) -> Tensor:
    """Each row of one times each of the other, element by element: (r, n), (s, n) -> (r * s, n)."""
    return made((one.shape[0] * other.shape[0], one.shape[1]), "crossed", [one, other])


def _times(tensor: Tensor, number: float) -> Tensor:
    """In float32, rounded once."""
    return add(Zeros(F32, tensor.shape), [Dense(tensor, number)])


def _config(adapter: Adapter, ranks: Mapping[str, tuple[int, float | None]]) -> dict[str, Any]:
    """adapter_config.json of the same as LoRA: scales are 1."""
    bias = str(adapter.config.get("bias") or "none")
    kept = {key: adapter.config[key] for key in _KEPT if adapter.config.get(key) is not None}
    return {"peft_type": "LORA", **kept, **numbers(ranks), "bias": re.sub(r".+_only", "lora_only", bias)}


def _said(ranks: Any) -> str:
    found = sorted({rank for rank, _ in ranks})
    return f"rank {found[0]}" if len(found) == 1 else f"ranks {found[0]} to {found[-1]}"


def _of(*axes: tuple[str, int]) -> Sides:
    """The shape that two axes of two parts are."""
    return lambda adapter, parts: tuple(parts[part].shape[axis] for part, axis in axes)


def _of_loha(adapter: Adapter, parts: Mapping[str, Tensor]) -> Shape:
    if len(parts["hada_w1_b"].shape) != 2 or "hada_t1" in parts or "hada_t2" in parts:
        raise LookupError("a convolution")
    return parts["hada_w1_a"].shape[0], parts["hada_w1_b"].shape[1]


def _of_gralora(adapter: Adapter, parts: Mapping[str, Tensor]) -> Shape:
    a, b = (parts[f"gralora_{which}"].shape for which in "AB")
    return b[0] * b[2], a[0] * a[1]


def _of_vblora(adapter: Adapter, parts: Mapping[str, Tensor]) -> Shape:
    length = adapter.shared["vblora_vector_bank"].shape[1]

    def count(which: str, axis: int) -> int:
        found: Sequence[str] = sorted(part for part in parts if part.startswith(f"vblora_logits_{which}"))
        return parts[found[0]].shape[axis]

    return count("B", 0) * length, count("A", 1) * length


SIDES: Mapping[str, Sides] = {
    "GRALORA": _of_gralora,
    "LOHA": _of_loha,
    "TINYLORA": _of(("tinylora_B", 0), ("tinylora_A", 1)),
    "UNILORA": _of(("unilora_indices_B", 0), ("unilora_indices_A", 1)),
    "VBLORA": _of_vblora,
}
