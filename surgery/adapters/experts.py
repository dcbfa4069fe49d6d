"""LoRA on parameters (PEFT's `target_parameters`): of all experts at once, in 3-D tensors, or a matrix.

    lora_A.weight (experts * r, in), the expert slowest; lora_B.weight (out, r * experts), the expert fastest
    expert e: scale * B[:, :, e] @ A[e] for a weight (out, in), and its transpose for one of (in, out)

What counts as `in` is the parameter's last axis, but its middle one where the class says that it is transposed:
`IN_OUT` types but for `UNFLAGGED` ones. Several parameters of a module nest: the one registered last has the
outermost wrapper, and each level further in adds `.base_layer` to the key. Ranks and alphas are looked up under the
parameter's name, not the module's.

Source: peft 0.21.2, tuners/lora/layer.py `ParamWrapper`, tuners/tuners_utils.py `_inject_parameters`. Before 0.19
PEFT took the middle axis for `in` always.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..errors import AdapterError, NotSupported
from ..files.peft import Adapter
from ..lazy.dtypes import ARITHMETIC
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Shape, Tensor, narrow, permute, reshape
from ..models.fused.layout import Layout, equal, sections, split_axis
from ..models.fused.row import EXPERT, Row, Site
from ..names import is_called
from .lora import strength

# Types whose class holds experts as (experts, in, out), and those of them that do not tell PEFT so by `is_transposed`.
IN_OUT = frozenset({"gpt_oss", "openai_privacy_filter", "aria", "aria_text", "llama4", "llama4_text"})
UNFLAGGED = frozenset({"llama4", "llama4_text"})
# The parameters of a module in the order in which classes register them.
ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias", "weight", "bias")
# What a class calls the parameter with these parts in memory, whatever the files call it.
IN_MEMORY = {("gate", "up"): "experts.gate_up_proj", ("up",): "experts.up_proj", ("down",): "experts.down_proj"}
LEVEL = ".base_layer"


def by_parameter(adapter: Adapter) -> Adapter:
    """The adapter with each LoRA on a parameter under the parameter's name, and told as such. Raises AdapterError,
    NotSupported.
    """
    targets = [str(target) for target in adapter.config.get("target_parameters") or []]
    nested: dict[str, list[str]] = {}
    for key in adapter.lora:
        nested.setdefault(re.sub(rf"(?:{re.escape(LEVEL)})+$", "", key), []).append(key)
    new: dict[str, str] = {}
    for module, keys in nested.items():
        every = {f"{module}.{target.rpartition('.')[2]}" for target in targets}
        mine = _owned(adapter.config, module, [name for name in every if is_called(name, targets)], targets, len(keys))
        if mine or len(keys) > 1:
            keys = sorted(keys, key=len)
            new |= dict(zip(reversed(keys), _ordered(adapter, module, mine, keys), strict=True))
    if not new:
        return adapter
    lora = {new.get(key, key): parts for key, parts in adapter.lora.items()}
    names = {
        f"{new.get(key, key)}.{part}": adapter.names[f"{key}.{part}"]
        for key, parts in adapter.lora.items()
        for part in parts
    }
    return replace(adapter, lora=lora, names={**adapter.names, **names}, parameters=frozenset(new.values()))


def _owned(config: Mapping[str, Any], module: str, names: list[str], targets: Sequence[str], count: int) -> list[str]:
    """Those of the parameter names that the module may have: a target without a dot is called like one of every module.

    Where more are called so than there are tensors of, a target that names the module, too, says which.
    """
    if len(names) <= count:
        return names
    dotted = [name for name in names if is_called(name, [target for target in targets if "." in target])]
    modules = config.get("target_modules")
    return dotted if dotted or (isinstance(modules, list) and is_called(module, map(str, modules))) else names


def _ordered(adapter: Adapter, module: str, names: Sequence[str], keys: Sequence[str]) -> list[str]:
    """The parameters of a module from the innermost wrapper to the outermost."""
    where = [f"{adapter.path}: {adapter.names[f'{key}.{next(iter(adapter.lora[key]))}']}" for key in keys]
    leaves = {name: name.rpartition(".")[2] for name in names}
    if [key.removeprefix(module) for key in keys] != [LEVEL * level for level in range(len(names))]:
        said = " and ".join(sorted(leaves.values())) or "none of them"
        raise AdapterError(
            f"{module} has LoRA on {len(keys)} parameters, of which target_parameters names {said}",
            where=where,
            help="the adapter's file and its adapter_config.json are not of one training; restore them",
        )
    if len(names) > 1 and (unknown := sorted({*leaves.values()} - {*ORDER})):
        raise NotSupported(
            f"which of the nested tensors belong to {', '.join(unknown)} follows from the class alone",
            where=where,
            help="merge it with PEFT",
        )
    return sorted(names, key=lambda name: ORDER.index(leaves[name]) if leaves[name] in ORDER else 0)


@dataclass(frozen=True, slots=True)
class Wrapped:
    """LoRA on one parameter."""

    parameter: str  # its whole name
    file: str  # the adapter's path, and the name of one of the tensors in it
    a: Tensor
    b: Tensor
    rank: int
    scale: float
    middle: bool  # whether PEFT took the middle axis for `in`, whatever the class says: before 0.19


def wrapped(adapter: Adapter, parameter: str) -> Wrapped:
    """The LoRA that the adapter has on `parameter`. Raises AdapterError, NotSupported."""
    parts = adapter.lora[parameter]
    file = f"{adapter.path}: {adapter.names[f'{parameter}.{next(iter(parts))}']}"
    if set(parts) != {"lora_A.weight", "lora_B.weight"}:
        what = f"LoRA on the parameter {parameter} has {', '.join(sorted(parts))}, and not one lora_A and one lora_B"
        raise AdapterError(what, where=[file], help="the adapter's file is incomplete: save it again")
    a, b = parts["lora_A.weight"], parts["lora_B.weight"]
    for factor in (a, b):
        if factor.dtype not in ARITHMETIC or len(factor.shape) != 2 or not factor.size:
            tip = "save the adapter whole, in float32, float16 or bfloat16"
            raise NotSupported(
                f"an adapter tensor of {factor.dtype} {factor.shape} is not supported", where=[file], help=tip
            )
    rank, _, scale = strength(adapter.config, parameter)
    return Wrapped(parameter, file, a, b, rank, scale, middle=_version(adapter.config) < (0, 19))


def _version(config: Mapping[str, Any]) -> tuple[int, int]:
    """Of the PEFT that saved the adapter; it says so since 0.18."""
    found = re.match(r"(\d+)\.(\d+)", str(config.get("peft_version", "")))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def called(site: Site) -> list[str]:
    """The names that the parameter at a site of experts has in a class: in memory, and in its files."""
    keys = tuple(site.row.parts)
    fused = f"{site.module}{site.row.tensors[0][0]}"
    return list(dict.fromkeys([f"{site.parent}{IN_MEMORY[keys]}", fused] if keys in IN_MEMORY else [fused]))


def pieces(site: Site, shape: Shape) -> Site:
    """The site of a stored 3-D tensor as one matrix for each expert, as it lies there: nothing in it is cut or
    turned.
    """
    suffix = site.row.tensors[0][0]
    parts = {"all": f"{site.row.fused}.{EXPERT}"}
    row = Row(
        "experts",
        site.row.model_types,
        "",
        site.row.fused,
        parts,
        equal(1),
        site.row.source,
        axis=1,
        tensors=((suffix, ".weight"),),
    )
    return replace(site, row=replace(row, stacked=True), layout=Layout(1, (1,), shape[1]))


def on_stack(one: Wrapped, site: Site, shape: Shape, config: Mapping[str, Any]) -> dict[str, LowRank]:
    """The deltas of the `pieces` of the 3-D tensor of `shape` at `site`, by tensor name."""
    experts, first, last = shape
    out, width = (last, first) if site.row.transposed else (first, last)
    deltas = _canonical(one, experts, out, width, f"{site.module} {shape}", config)
    if site.row.transposed:
        deltas = [_turned(delta) for delta in deltas]
    return {f"{part}.weight": delta for part, delta in zip(pieces(site, shape).parts, deltas, strict=True)}


def on_experts(one: Wrapped, site: Site, width: int, config: Mapping[str, Any]) -> dict[str, LowRank]:
    """The deltas of the experts' own tensors at `site`, (out, in) each with `in` = `width`, by tensor name."""
    deltas = _canonical(
        one, site.experts, site.layout.length, width, f"{site.experts} experts of {site.module}", config
    )
    found = []
    for delta in deltas:
        found += [LowRank(left, delta.right, delta.scale) for left in split_axis(delta.left, 0, site.layout)]
    return {f"{part}.weight": delta for part, delta in zip(site.parts, found, strict=True)}


def on_matrix(one: Wrapped, name: str, shape: Shape) -> LowRank:
    """The delta of a 2-D parameter, which PEFT never turns."""
    if (one.b.shape[0], one.a.shape[1]) != shape or one.a.shape[0] != one.rank or one.b.shape[1] != one.rank:
        raise _misfit(one, f"{name} {shape}", f"rank {one.rank}")
    return LowRank(one.b, one.a, one.scale)


def _canonical(one: Wrapped, experts: int, out: int, width: int, base: str, config: Mapping[str, Any]) -> list[LowRank]:
    """The delta of each expert, for a weight of (out, width)."""
    a, b, rank = one.a, one.b, one.rank
    if a.shape[0] != experts * rank or b.shape[1] != experts * rank:
        raise _misfit(one, base, f"rank {rank} for each of {experts} experts")
    straight, turned = (b.shape[0], a.shape[1]) == (out, width), (a.shape[1], b.shape[0]) == (out, width)
    kinds = {section.get("model_type") for section in sections(config)}
    expected = bool(kinds & IN_OUT) if one.middle else not kinds & UNFLAGGED
    if not (straight if expected else turned) and not (one.middle and (straight or turned)):
        raise _misfit(one, base, "the class's axes")
    if one.middle and straight != turned:
        expected = straight  # its class may have held the experts the other way round; one reading is left
    by_rank = reshape(b, (b.shape[0], rank, experts))
    deltas = []
    for expert in range(experts):
        left = reshape(narrow(by_rank, 2, expert, 1), (b.shape[0], rank))
        delta = LowRank(left, narrow(a, 0, expert * rank, rank), one.scale)
        deltas.append(delta if expected else _turned(delta))
    return deltas


def _turned(delta: LowRank) -> LowRank:
    return LowRank(permute(delta.right, (1, 0)), permute(delta.left, (1, 0)), delta.scale)


def _misfit(one: Wrapped, base: str, what: str) -> AdapterError:
    return AdapterError(
        f"LoRA on {one.parameter} does not fit {what}: lora_A is {one.a.shape}, lora_B {one.b.shape}",
        where=[one.file, f"base: {base}"],
        help="the adapter belongs to another base, or its config to another adapter",
    )
