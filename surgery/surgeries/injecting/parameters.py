"""Parameters that LoRA can be put on by name, PEFT's `target_parameters`: those of all experts of a layer, and plain
matrices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...adapters.experts import LEVEL, ORDER, UNFLAGGED, called
from ...checkpoint import Checkpoint
from ...errors import NothingMatched, NotSupported, listed, nearest
from ...lazy.dtypes import ARITHMETIC
from ...models.families import EXPERT_TARGETS
from ...models.fused.layout import sections
from ...models.fused.row import Site
from ...models.names_v5 import in_memory, renames_of
from ...names import compiled, is_called, natural
from ..split import fused_in, split_in
from .modules import Kind, Module

EXPERTS = ("experts",)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter by its name in memory, and what PEFT's LoRA on it takes in and gives out, for each of so many
    experts.
    """

    name: str
    experts: int
    into: int
    out: int

    @property
    def module(self) -> str:
        """The module that holds it."""
        return self.name.rpartition(".")[0]


def targeted(base: Checkpoint, config: Mapping[str, Any], modules: Sequence[str]) -> list[Parameter]:
    """The parameters that `target_parameters` names, as PEFT looks for them: by the ends of their names.

    Raises NothingMatched for a name that is nowhere, NotSupported where LoRA cannot be put on what is there.
    """
    wanted = config["target_parameters"] or []
    if not wanted:
        return []
    found = {**dict.fromkeys(_names(base)), **_matrices(base), **_stacked(base)}
    mine = {name: found[name] for name in sorted(found, key=natural) if is_called(name, wanted)}
    if idle := [end for end in wanted if not any(is_called(name, [end]) for name in mine)]:
        near = [
            ".".join(name.split(".")[-2:])
            for end in idle
            for name in nearest(end, {".".join(n.split(".")[-2:]) for n in found})
        ]
        tip = (
            f"the nearest names are {', '.join(dict.fromkeys(near))}"
            if near
            else "they end such as experts.gate_up_proj"
        )
        what = f"{len(idle)} of {len(wanted)} target parameters are nowhere in the base: {', '.join(listed(idle))}"
        raise NothingMatched(what, where=[base.path], help=tip)
    if dark := [name for name, parameter in mine.items() if parameter is None]:
        what = "these are neither experts in a layout that is known nor matrices of numbers"
        raise NotSupported(
            f"cannot put LoRA on parameters: {what}", where=[base.path, *listed(dark)], help="name others"
        )
    taken = {parameter.module for parameter in mine.values() if parameter} & set(modules)
    if taken:
        what, tip = (
            "PEFT puts LoRA on a module or on its parameter, not on both",
            "name each in one of the two lists of targets",
        )
        raise NotSupported(what, where=listed(sorted(taken, key=natural)), help=tip)
    return [parameter for parameter in mine.values() if parameter]


def as_peft_reads(base: Checkpoint, config: dict[str, Any], modules: Mapping[str, Module]) -> list[str]:
    """Turn targets that the class holds in parameters into these, in `config`, as PEFT does for some types; says so.

    The files and older classes have modules such as `gate_proj` for each expert; PEFT takes that name for all
    experts' `gate_up_proj`, with twice the rank, and for no other module, a shared expert's included (peft 0.21.2,
    utils/transformers_weight_conversion.py). Raises NotSupported for one half of a fused pair.
    """
    table, wanted = EXPERT_TARGETS.get(str(base.config.get("model_type")), {}), config["target_modules"]
    if not table:
        return []
    stacked, every = _stacked(base), wanted == "all-linear"
    if every:
        linear = {
            name.rpartition(".")[2]
            for name, module in modules.items()
            if module.kind is Kind.LINEAR and not module.head
        }
        targets = linear | table.keys()
    elif isinstance(wanted, str):
        rule = compiled(wanted)
        probed = {
            f"{name.rpartition('.')[0]}.{old}": old
            for name in stacked
            for old, new in table.items()
            if is_called(name, [new])
        }
        keys = {
            name: name.rpartition(".")[2]
            for name in (*modules, *(n for n, m in modules.items() if m.kind is Kind.OTHER))
        } | probed
        targets = {leaf for name, leaf in keys.items() if rule.fullmatch(name)}
        if not targets & table.keys():
            return []
    else:
        targets = set(wanted)
    turned = {target: old for target in targets for old in table if is_called(target, [old])}
    if not turned:
        return []
    _check_pairs(set(turned.values()), table, base)
    new = {table[old] for old in turned.values()}
    if every:  # a model without experts, or whose router is called otherwise, has none of them
        new = {name for name in new if any(is_called(known, [name]) for known in (*stacked, *_matrices(base)))}
    config["target_modules"] = sorted(targets - turned.keys(), key=natural)
    config["target_parameters"] = sorted({*(config["target_parameters"] or ()), *new})
    if "gate_up_proj" in new:
        config["rank_pattern"] |= {r".*\.gate_up_proj": 2 * config["r"]}
        config["alpha_pattern"] |= {r".*\.gate_up_proj": 2 * config["lora_alpha"]}
    said = f"{', '.join(sorted(set(turned.values())))} as {', '.join(sorted(new))}, of all experts at once"
    return [f"as PEFT does for model type `{base.config['model_type']}`, it takes {said}"] if new else []


def _check_pairs(found: Collection[str], table: Mapping[str, str], base: Checkpoint) -> None:
    pair = [old for old, new in table.items() if new == "gate_up_proj"]
    if 0 < len(set(found) & set(pair)) < len(pair):
        what = f"{' and '.join(pair)} are one parameter of all experts in the class: LoRA is on both, or on none"
        raise NotSupported(
            what, where=[base.path], help=f"target {' and '.join(pair)}, or --target-parameters experts.gate_up_proj"
        )


def keys_of(parameters: Sequence[Parameter]) -> dict[str, Parameter]:
    """Where a file has the LoRA on each: under its module, the one registered last outermost. Raises NotSupported."""
    keys: dict[str, Parameter] = {}
    for module in dict.fromkeys(parameter.module for parameter in parameters):
        mine = [parameter for parameter in parameters if parameter.module == module]
        leaves = [parameter.name.rpartition(".")[2] for parameter in mine]
        if len(mine) > 1 and (unknown := [leaf for leaf in leaves if leaf not in ORDER]):
            what = (
                f"which of the parameters of {module} is registered first follows from the class alone:"
                f" {', '.join(unknown)}"
            )
            raise NotSupported(what, where=[parameter.name for parameter in mine], help="target one of them")
        order = sorted(mine, key=lambda one: ORDER.index(one.name.rpartition(".")[2]) if len(mine) > 1 else 0)
        keys |= {f"{module}{LEVEL * (len(order) - 1 - at)}": parameter for at, parameter in enumerate(order)}
    return keys


def _stacked(base: Checkpoint) -> dict[str, Parameter | None]:
    """The parameters of experts: as the class holds them, whether the files have them in one tensor or apart."""
    turned = not {section.get("model_type") for section in sections(base.config)}.isdisjoint(UNFLAGGED)
    renames, found = renames_of(base.config), dict[str, Parameter | None]()
    for site, stored in [(s, True) for s in fused_in(base, EXPERTS)] + [(s, False) for s in split_in(base, EXPERTS)]:
        experts, out, into = _sizes(base, site, stored)
        for name in {in_memory(name, renames) for name in called(site)}:
            found[name] = Parameter(name, experts, *((out, into) if turned else (into, out)))
    return found


def stacks(base: Checkpoint) -> dict[str, tuple[str, Parameter, bool]]:
    """The 3-D tensors of experts that the base stores: by the name in memory, that in the files, the parameter, and
    whether PEFT takes the last axis for `in`.
    """
    turned = not {section.get("model_type") for section in sections(base.config)}.isdisjoint(UNFLAGGED)
    renames, known = renames_of(base.config), _stacked(base)
    found = {}
    for site in fused_in(base, EXPERTS):
        name = in_memory(called(site)[0], renames)
        if parameter := known[name]:
            found[name] = (f"{site.module}{site.row.tensors[0][0]}", parameter, site.row.transposed == turned)
    return found


def _sizes(base: Checkpoint, site: Site, stored: bool) -> tuple[int, int, int]:
    """(experts, out, in) of a site: what one expert's matrices give out and take in."""
    if not stored:
        return site.experts, site.layout.length, base.tensors[f"{site.parts[0]}.weight"].shape[-1]
    experts, first, last = base.tensors[f"{site.module}{site.row.tensors[0][0]}"].shape
    return (experts, last, first) if site.row.transposed else (experts, first, last)


def _matrices(base: Checkpoint) -> dict[str, Parameter | None]:
    renames = renames_of(base.config)
    flat = {
        in_memory(name, renames): t.shape
        for name, t in base.tensors.items()
        if len(t.shape) == 2 and t.dtype in ARITHMETIC
    }
    return {name: Parameter(name, 1, shape[1], shape[0]) for name, shape in flat.items()}


def _names(base: Checkpoint) -> list[str]:
    renames = renames_of(base.config)
    return [in_memory(name, renames) for name in base.tensors]
