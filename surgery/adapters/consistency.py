"""Does an adapter's config fit its tensors? Answered from headers and config alone, without the base.

`contradictions` are wrong in any case: one of the two files is not of this training. `doubts` may be right: PEFT
passes over targets that a model has not, and over tensors that no target names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..errors import AdapterError, SurgeryError, listed
from ..files.peft import Adapter
from ..lazy.tensor import Tensor
from ..models.families import EMBEDDINGS, HEADS
from ..names import is_called, natural
from ..patterns.matching import fullmatch
from .blocks import without_blocks
from .dora import MAGNITUDES
from .experts import by_parameter, wrapped
from .lora import BIAS, check_factors, check_numbers
from .methods.telling import contradictions as of_kind
from .unwrapped import unwrapped

KEPT_TIED = ("embed_tokens", "lm_head")
IN_PROJ = ".in_proj_weight"


def contradictions(adapter: Adapter) -> list[str]:
    """What adapter_config.json says of the adapter, and the tensors do not, one line each."""
    if adapter.config.get("peft_type") != "LORA":
        return of_kind(adapter)
    try:
        check_numbers(adapter)
        for option in ("target_modules", "exclude_modules"):
            _matches(adapter.config.get(option), "")
        adapter = by_parameter(without_blocks(unwrapped(adapter)))
    except SurgeryError as error:
        return [_line(error)]
    found = [
        f"{name} holds no element: an ungathered save looks like this"
        for name, t in adapter.tensors.items()
        if not t.size
    ]
    for module in sorted(adapter.lora, key=natural):
        found += _of_module(adapter, module)
    return found


def doubts(adapter: Adapter) -> list[str]:
    """What adapter_config.json aims at and no tensor is of, and tensors that it does not aim at, one line each; of
    LoRA alone.
    """
    if adapter.config.get("peft_type") != "LORA":
        return []
    try:
        return _doubts(by_parameter(unwrapped(adapter)))
    except SurgeryError:  # a contradiction, and told as such
        return []


def keeps_ties(adapter: Adapter) -> bool:
    """Whether tied tensors stay one: PEFT sees to it for two names alone, whatever the class calls its embedding.

    Source: peft 0.21.2, tuners/tuners_utils.py `_check_tied_modules`, and utils/constants.py EMBEDDING_LAYER_NAMES.
    """
    if not adapter.config.get("ensure_weight_tying"):
        return False
    aimed, saved = (adapter.config.get(key) or [] for key in ("target_modules", "modules_to_save"))
    if isinstance(aimed, str):
        return any(fullmatch(aimed, name) or is_called(name, saved) for name in KEPT_TIED)
    return any(name.rpartition(".")[2] in KEPT_TIED for name in (*aimed, *saved))


def strangers(adapter: Adapter) -> list[str]:
    """Modules that the adapter has LoRA on and its config does not aim at: PEFT passes over them. `by_parameter`
    comes first.

    A module that is aimed at only because it is tied to another one, and the out_proj within an attention, are none.
    """
    config, modules = adapter.config, sorted(adapter.lora.keys() - adapter.parameters, key=natural)
    tied = EMBEDDINGS | HEADS if keeps_ties(adapter) else ()
    inside = {f"{name.removesuffix(IN_PROJ)}.out_proj" for name in adapter.parameters if name.endswith(IN_PROJ)}
    return [one for one in modules if one not in inside and not is_called(one, tied) and not _is_aimed_at(config, one)]


def without_factors(adapter: Adapter, weights: Mapping[str, Tensor], *, norms: bool = False) -> list[str]:
    """Modules among the base's `weights` that the config aims at and the adapter has no factors for; `norms` may be
    among them.

    None where the adapter has other names than the base: which of its modules the config aims at is not told by
    names, then.
    """
    if adapter.config.get("target_modules") in (None, "all-linear") or any(
        f"{module}.weight" not in weights for module in adapter.lora.keys() - adapter.parameters
    ):
        return []
    saved = {name.removesuffix(".weight") for name in adapter.whole}
    modules = {
        name.removesuffix(".weight")
        for name, one in weights.items()
        if name.endswith(".weight") and len(one.shape) > (0 if norms else 1)
    }
    idle = [module for module in modules - adapter.lora.keys() - saved if _is_aimed_at(adapter.config, module)]
    return sorted(
        (module for module in idle if ".experts." not in module), key=natural
    )  # in memory they are one module


def _doubts(adapter: Adapter) -> list[str]:
    modules = sorted(adapter.lora.keys() - adapter.parameters, key=natural)
    idle = _idle(adapter.config, modules)
    rows = [f"no tensor is of {', '.join(listed(idle))}, which adapter_config.json names"] if idle else []
    saved = adapter.config.get("modules_to_save") or []
    if saved and not any(is_called(name.rpartition(".")[0], saved) for name in adapter.whole):
        rows.append(f"no tensor is of {', '.join(listed(saved))}, which adapter_config.json says is saved")
    if unaimed := strangers(adapter):
        rows.append(f"adapter_config.json does not aim at {', '.join(listed(unaimed))}, which tensors are of")
    return rows


def _of_module(adapter: Adapter, module: str) -> list[str]:
    """What is wrong with the tensors of one module: rank, missing ones, DoRA's and biases that are not said, or said
    and not there.
    """
    parts, found = adapter.lora[module], []
    try:
        if module in adapter.parameters:
            one = wrapped(adapter, module)
            if one.a.shape[0] != one.b.shape[1] or one.a.shape[0] % one.rank:
                found.append(f"{module}: rank {one.rank} is said, but lora_A is {one.a.shape} and lora_B {one.b.shape}")
        else:
            check_factors(adapter, module)
    except AdapterError as error:
        found += [f"{module}: {error.what}"] if type(error) is AdapterError else []
    for option, keys in (("use_dora", MAGNITUDES), ("lora_bias", (BIAS,))):
        there, said = any(key in parts for key in keys), bool(adapter.config.get(option))
        if there != said and module not in adapter.parameters:
            found.append(
                f"{module}: {option} is {str(said).lower()}, but the module has {'one' if there else 'no'} {keys[0]}"
            )
    return found


def _line(error: SurgeryError) -> str:
    return ": ".join((error.what, *error.where[1:]))


def _idle(config: Mapping[str, Any], modules: list[str]) -> list[str]:
    """Targets and layers that no module is of."""
    wanted, layers = config.get("target_modules"), config.get("layers_to_transform")
    targets = (
        [wanted] if isinstance(wanted, str) and wanted != "all-linear" else wanted if isinstance(wanted, list) else []
    )
    idle = [
        str(one)
        for one in targets
        if not any(_matches(wanted if isinstance(wanted, str) else [one], m) for m in modules)
    ]
    numbers = [layers] if isinstance(layers, int) else layers if isinstance(layers, list) else []
    return idle + [
        f"layer {number}" for number in numbers if number not in {_layer(config, module) for module in modules}
    ]


def _is_aimed_at(config: Mapping[str, Any], module: str) -> bool:
    """Whether PEFT would put LoRA on the module, as far as config and name tell."""
    wanted, layers = config.get("target_modules"), config.get("layers_to_transform")
    if wanted in (None, "all-linear"):
        return True
    if not _matches(wanted, module) or _matches(config.get("exclude_modules"), module):
        return False
    numbers = [layers] if isinstance(layers, int) else layers
    return not numbers or isinstance(wanted, str) or module in wanted or _layer(config, module) in numbers


def _matches(wanted: Any, module: str) -> bool:
    if isinstance(wanted, str):
        return fullmatch(wanted, module)
    return isinstance(wanted, list) and is_called(module, map(str, wanted))


def _layer(config: Mapping[str, Any], module: str) -> int | None:
    """The number of the layer that the module is in, as PEFT finds it (tuners_utils.py check_target_module_exists)."""
    said = config.get("layers_pattern") or r"[^.]*"
    for pattern in [said] if isinstance(said, str) else said:
        if found := re.match(rf"(?:^|.*?\.){pattern}\.(?P<number>\d+)\.", module):
            return int(found["number"])
    return None
