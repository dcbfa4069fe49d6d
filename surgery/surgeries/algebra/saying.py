"""adapter_config.json of a LoRA that was made of others or from nothing, and the names of its tensors in the file, as
PEFT loads them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ...adapters.fused import Rank, config_with
from ...adapters.low_rank import is_inside
from ...checkpoint import Checkpoint
from ...errors import AdapterError
from ...files.peft import PREFIX, TOKENS, Adapter, module_of, parse_adapter
from ...lazy.tensor import Tensor
from ...names import natural
from ..injecting.inject import named_by
from ..injecting.modules import Kind, Module
from ..injecting.options import DEFAULTS
from ..injecting.parameters import Parameter, keys_of
from ..injecting.saved import task_of

# Where LoRA is: what is kept as it was said where all adapters say the same, and have the same modules.
AIM = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")
# What has to be the same in all of them, since it is not of one module.
SAME = ("layer_replication", "ensure_weight_tying")


def config_of(adapters: Sequence[Adapter], ranks: Mapping[str, Rank]) -> dict[str, Any]:
    """The config of ordinary LoRA on the modules and parameters in `ranks`, that some of the `adapters` have, with
    what these hold whole.
    """
    configs = [one.config for one in adapters]
    for key in SAME:
        _check_same(adapters, key)
    made: dict[str, Any] = {**DEFAULTS, "init_lora_weights": True, "lora_dropout": 0.0, "use_dora": False}
    for key in ("base_model_name_or_path", "revision", "task_type", *SAME):
        made[key] = next((config[key] for config in configs if config.get(key)), made.get(key))
    made |= _aim(adapters, ranks) | {
        "use_rslora": False,
        "lora_bias": any(config.get("lora_bias") for config in configs),
    }
    made["bias"] = next((how for how in ("all", "lora_only") if any(c.get("bias") == how for c in configs)), "none")
    made["fan_in_fan_out"] = any(config.get("fan_in_fan_out") for config in configs)
    made["modules_to_save"] = _union(config.get("modules_to_save") for config in configs) or None
    made["trainable_token_indices"] = _tokens(adapters)
    return config_with(made, ranks) if ranks else {**made, "r": 8, "lora_alpha": 8}


def config_of_new(
    base: Checkpoint, known: Mapping[str, Module], chosen: Collection[str], ranks: Mapping[str, Rank]
) -> dict[str, Any]:
    """The config of LoRA that was made from nothing on the `chosen` ones of the `known` modules of a base."""
    task, heads, _ = task_of(base, ())
    by_leaf: dict[str, set[str]] = {}
    for name in known:
        by_leaf.setdefault(name.rpartition(".")[2], set()).add(name)
    leaves = {leaf for leaf, names in by_leaf.items() if names <= set(chosen) and not leaf.isdigit()}
    targets = {leaf if (leaf := name.rpartition(".")[2]) in leaves else name for name in chosen}
    made = {
        **DEFAULTS,
        **named_by(base),
        "task_type": None if heads else task,  # PEFT would look for a head in the adapter
        "target_modules": sorted(targets, key=natural),
        "fan_in_fan_out": any(known[name].kind is Kind.CONV1D for name in chosen),
        **dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters")),
        **{"init_lora_weights": True, "lora_dropout": 0.0, "use_dora": False, "lora_bias": False, "use_rslora": False},
    }
    return config_with(made, ranks) if ranks else {**made, "r": 8, "lora_alpha": 8}


def _aim(adapters: Sequence[Adapter], ranks: Mapping[str, Rank]) -> dict[str, Any]:
    """Which modules have LoRA: as all adapters say it, or by their whole names."""
    said = [{key: one.config.get(key) or None for key in AIM} for one in adapters]
    if all(one.lora.keys() == ranks.keys() for one in adapters) and all(one == said[0] for one in said):
        return said[0]
    parameters = frozenset(name for one in adapters for name in one.parameters)
    inside = {module for one in adapters for module in one.lora if is_inside(one, module)}
    aimed = sorted(ranks.keys() - parameters - inside, key=natural)
    return {**dict.fromkeys(AIM), "target_modules": aimed, "target_parameters": sorted(parameters, key=natural) or None}


def _check_same(adapters: Sequence[Adapter], key: str) -> None:
    values = {one.path: one.config.get(key) or None for one in adapters}
    if any(
        value != adapters[0].config.get(key) and (value or adapters[0].config.get(key)) for value in values.values()
    ):
        rows = [f"{path}: {key} = {value!r}" for path, value in values.items()]
        tip = "merge them into the base together: surgery merge BASE A B -o OUT"
        raise AdapterError(f"the adapters differ in {key}, and one adapter has one for all", where=rows, help=tip)


def _tokens(adapters: Sequence[Adapter]) -> Any:
    """The tokens that were trained, which those that have any say alike."""
    said = {one.path: found for one in adapters if (found := one.config.get("trainable_token_indices"))}
    if any(found != next(iter(said.values())) for found in said.values()):
        rows = [f"{path}: trainable_token_indices = {found!r}" for path, found in said.items()]
        tip = "merge one of them into the base, and the other one into that"
        raise AdapterError("the adapters trained different tokens", where=rows, help=tip)
    return next(iter(said.values()), None)


def _union(lists: Any) -> list[str]:
    return list(dict.fromkeys(name for names in lists for name in names or ()))


def as_adapter(
    path: str,
    config: Mapping[str, Any],
    lora: Mapping[str, Mapping[str, Tensor]],
    whole: Mapping[str, Tensor],
    parameters: Collection[str],
    inside: Collection[str] = (),
) -> Adapter:
    """The adapter as it is where it is written and opened again. `lora` is by module, or by parameter where it is one
    of `parameters`; `inside` are modules whose LoRA lies inside of that on another.
    """
    names = _in_file(lora, whole, parameters, inside)
    tensors = {f"{module}.{part}": tensor for module, parts in lora.items() for part, tensor in parts.items()}
    return parse_adapter(path, config, {names[key]: tensor for key, tensor in {**tensors, **whole}.items()})


def whole_number(value: float) -> float:
    """The number, as PEFT writes it: without a point where it is a whole one."""
    return int(value) if value == int(value) else value


def _in_file(
    lora: Mapping[str, Mapping[str, Tensor]],
    whole: Collection[str],
    parameters: Collection[str],
    inside: Collection[str],
) -> dict[str, str]:
    """What the tensors are called in the file, by `module.part`, or by the base tensor whose place they take."""
    known = [Parameter(name, 1, 0, 0) for name in sorted(parameters, key=natural)]
    keys = {parameter.name: key for key, parameter in keys_of(known).items()}
    names = dict[str, str]()
    for module, parts in lora.items():
        at = keys.get(module, module)
        at = re.sub(r"\.out_proj$", ".base_layer.out_proj", at) if module in inside else at
        names |= {f"{module}.{part}": f"{PREFIX}{at}.{part}" for part in parts}
    return names | {key: f"{PREFIX}{_within(key, lora)}" for key in whole}


def _within(key: str, lora: Collection[str]) -> str:
    """A tensor of a module that has LoRA lies inside of PEFT's layer, and so do trained rows of an embedding."""
    module, leaf = module_of(key), key.rpartition(".")[2]
    if TOKENS.fullmatch(key):
        return f"{module}.token_adapter.trainable_tokens_delta"
    return f"{module}.base_layer.{leaf}" if module in lora and key == f"{module}.{leaf}" else key
