"""Adapters of AdapterHub's `adapters`: `pytorch_adapter.bin` or `adapter.safetensors`, with an adapter_config.json.

    X.loras.NAME.lora_A (r, in), .lora_B (out, r)      scale alpha / r; `composition_mode: add`
    c_attn of GPT-2: (n * r, in), (n * out / 3, r)     the n of q, k and v in `attn_matrices`, as loralib's MergedLinear
    X.loras.NAME.lora_B (out, 1)                       (IA)³, `composition_mode: scale`: weight and bias times
                                                       alpha * lora_B
    X.loras.NAME.vera_D (r, r), .vera_B (out, out)     VeRA: vera_B @ B @ vera_D @ A; A and B, which all modules share,
    shared_parameters.NAME.lora_A, .lora_B             are in the file
    X.loras.NAME.m.weight (out, 1)                     DoRA of its own kind, no PEFT's: `adapters/methods/adapterhub.py`
    X.loras.NAME.lora_B (n, out, r), .weights (n),     MTL-LoRA: B is the sum of the n by softmax(weights / sharpness),
    .task_specific.values (r)                          times the values

What has a nonlinearity of the input is told, as a kind that no weight can hold: bottlenecks, gates, prefixes, fusion.

Source: adapters 1.3.0, methods/lora.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, FormatError, NotSupported
from ...lazy.dense import Dense
from ...lazy.dtypes import F32
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, Zeros, add, made
from ..peft import Adapter
from .format import Format, Found, Said, pair_of, strangers
from .lora import lora_adapter
from .loralib import placed

TOOL = "AdapterHub"
DORA = "AdapterHub DoRA"  # what the kind is called that `adapters/methods` has
MAGNITUDE, _VALUES = "m.weight", "task_specific.values"
# What has no place in weights, by where its tensors lie: what such a kind is called, where it is refused.
NONLINEAR: Mapping[str, str] = {
    "adapter_fusion_layer": "AdapterHub fusion",
    "adapters": "AdapterHub bottleneck",
    "invertible_adapters": "AdapterHub bottleneck",
    "prefix_tunings": "AdapterHub prefix",
    "prompt_tunings": "AdapterHub prefix",
    "refts": "AdapterHub ReFT",
}
GATES = "AdapterHub gates"
_ANY = re.compile(
    rf"(?:(?P<module>.+?)\.)?(?P<room>loras|shared_parameters|{'|'.join(NONLINEAR)})\.(?P<name>[^.]+)\.(?P<part>.+)"
)
_SURE = ("loras", "adapter_fusion_layer", "invertible_adapters")  # where no other tool's tensors lie
_FUSED = "c_attn"  # the one fused projection whose parts are q, k and v, one after another


def recognise(found: Found) -> str:
    """What tells it."""
    rooms = {name: match["room"] for name in found.tensors if (match := _ANY.fullmatch(name))}
    said = str(found.config.get("version", "")).startswith("adapters.")
    if not rooms or not (said or set(rooms.values()) & set(_SURE)):
        return ""
    version = f", adapter_config.json says version {found.config['version']}" if said else ""
    return f"{next(iter(rooms))} and such are called as its parts are{version}"


def read(found: Found, said: Said) -> Adapter:
    """The adapter. Raises FormatError, AdapterError, NotSupported."""
    if kind := _nonlinear(found):
        return _listed(found, kind)
    config = _config(found)
    modules, shared = _modules(found)
    if config.get("composition_mode", "add") == "scale":
        return _scales(found, modules, config)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, (name, parts) in modules.items():
        a, b, files = _factors(found, module, parts, shared, config)
        count = _count(found, module, a, b, config)
        enabled = tuple(part in config.get("attn_matrices", ()) for part in "qkv") if module.endswith(_FUSED) else None
        lora[module] = {"lora_A.weight": a, "lora_B.weight": placed(b, count, enabled)}
        names |= {f"{module}.lora_{x}.weight": files[x] or f"{module}.loras.{name}.lora_{x}" for x in "AB"}
        ranks[module] = (a.shape[0], float(config["alpha"]) * count)
        if MAGNITUDE in parts:
            lora[module][MAGNITUDE] = _magnitude(found, module, parts[MAGNITUDE])
            names[f"{module}.{MAGNITUDE}"] = f"{module}.loras.{name}.{MAGNITUDE}"
    return _as_dora(found, lora_adapter(found, TOOL, lora, names, ranks), config)


def _nonlinear(found: Found) -> str:
    """The kind of what the file has that no weight can hold; "" where it has nothing such."""
    for name in found.tensors:
        match = _ANY.fullmatch(name)
        if match and match["part"].startswith("gate."):
            return GATES
        if match and match["room"] in NONLINEAR:
            return NONLINEAR[match["room"]]
    return ""


def _listed(found: Found, kind: str) -> Adapter:
    """The adapter as it lies, of a kind that no weight can hold: it is looked at, and not merged."""
    lora: dict[str, dict[str, Tensor]] = {}
    names = dict[str, str]()
    for name, tensor in found.tensors.items():
        match = _ANY.fullmatch(name)
        module, part = ((match["module"] or match["room"]), match["part"]) if match else ("", name)
        part = part if match and part not in lora.get(module, {}) else name
        lora.setdefault(module, {})[part] = tensor
        names[f"{module}.{part}"] = name
    return Adapter(found.path, {"peft_type": kind}, lora, {}, names, metadata=found.metadata)


def _magnitude(found: Found, module: str, tensor: Tensor) -> Tensor:
    if module.endswith(_FUSED):
        what = "DoRA on a fused projection is not read: AdapterHub itself takes no lengths there"
        raise NotSupported(what, where=[f"{found.path}: {module}"], help="serve it live, with AdapterHub")
    return tensor


def _as_dora(found: Found, adapter: Adapter, config: Mapping[str, Any]) -> Adapter:
    """The adapter of the kind that has magnitudes, where it has any. Raises AdapterError where only some modules do."""
    have = [module for module, parts in adapter.lora.items() if MAGNITUDE in parts]
    if bool(config.get("use_dora")) != bool(have) or (have and len(have) < len(adapter.lora)):
        said = f"{len(have)} of {len(adapter.lora)} modules have DoRA's {MAGNITUDE}"
        what = f"{said}, and use_dora is {json.dumps(config.get('use_dora'))}"
        raise AdapterError(what, where=[found.path], help="config and file are not of one training; restore them")
    if not have:
        return adapter
    numbers = {key: adapter.config[key] for key in ("r", "rank_pattern", "alpha_pattern", "target_modules")}
    return replace(adapter, config={"peft_type": DORA, "alpha": adapter.config["lora_alpha"], **numbers})


def _config(found: Found) -> Mapping[str, Any]:
    """What the adapter_config.json says of the architecture. Raises AdapterError."""
    config = found.config.get("config")
    where = [found.path, "adapter_config.json"]
    if not isinstance(config, Mapping):
        tip = "put the adapter_config.json that AdapterHub wrote beside it: it says alpha and what is trained"
        raise AdapterError("the adapter has no config of AdapterHub's", where=where, help=tip)
    for key in ("r", "alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), int | float) or not config[key]:
            what = f"{key} = {config.get(key)!r} is no number"
            raise AdapterError(what, where=where, help="restore it from the training")
    return config


def _modules(found: Found) -> tuple[dict[str, tuple[str, dict[str, Tensor]]], dict[str, tuple[str, Tensor]]]:
    """The tensors by module, with the adapter's name, and those that all share. Raises FormatError."""
    modules: dict[str, tuple[str, dict[str, Tensor]]] = {}
    shared: dict[str, tuple[str, Tensor]] = {}
    rest = []
    for name, tensor in found.tensors.items():
        match = _ANY.fullmatch(name)
        if match is None or not match["module"]:
            rest.append(name)
        elif match["room"] == "shared_parameters":
            first = shared.setdefault(match["part"], (name, tensor))[0]
            if first != name:
                raise _two(found, first, name)
        else:
            own, parts = modules.setdefault(match["module"], (match["name"], {}))
            if own != match["name"]:
                raise _two(found, match["module"], own, match["name"])
            parts[match["part"]] = tensor
    used = any("vera_B" in parts for _, parts in modules.values())
    if rest := [*rest, *(name for name, _ in shared.values() if not used)]:
        raise strangers(found, sorted(rest), TOOL)
    return modules, shared


def _two(found: Found, *rows: str) -> FormatError:
    tip = "save each in a file of its own"
    return FormatError("the file holds two adapters", where=[found.path, *rows], help=tip)


def _factors(
    found: Found,
    module: str,
    parts: Mapping[str, Tensor],
    shared: Mapping[str, tuple[str, Tensor]],
    config: Mapping[str, Any],
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """A and B of the module, and their names in the file where these are not its own: VeRA's are products."""
    known = {"vera_B": {"vera_B", "vera_D"}, _VALUES: {"lora_A", "lora_B", "weights", _VALUES}}
    kind = next((part for part in known if part in parts), None)
    if more := sorted(parts.keys() - known.get(kind or "", {"lora_A", "lora_B"}) - {MAGNITUDE}):
        tip = "serve it live, with AdapterHub"
        raise NotSupported(f"LoRA with {', '.join(more)} is not read", where=[f"{found.path}: {module}"], help=tip)
    if kind == _VALUES:
        return _weighed(found, module, parts, config)
    if kind is None:
        a, b = pair_of(found, module, parts, ("lora_A", "lora_B"))
        return a, b, {"A": "", "B": ""}
    left, right = pair_of(found, module, parts, ("vera_B", "vera_D"))
    if shared.keys() != {"lora_A", "lora_B"}:
        what = "the file has no lora_A and lora_B, which all its modules share"
        raise AdapterError(what, where=[found.path], help="save the adapter again, with AdapterHub")
    (_, a), (_, b) = shared["lora_A"], shared["lora_B"]
    if b.shape != (left.shape[1], right.shape[0]) or a.shape[:1] != right.shape[1:]:
        what = f"the shared lora_A {a.shape} and lora_B {b.shape} are not the module's"
        raise NotSupported(what, where=[f"{found.path}: {module}"], help="merge it with AdapterHub")
    made_b = add(Zeros(F32, (left.shape[0], b.shape[1])), [LowRank(left, b, 1.0)])
    made_a = add(Zeros(F32, (right.shape[0], a.shape[1])), [LowRank(right, a, 1.0)])
    stem = next(name for name, one in found.tensors.items() if one is left).removesuffix("vera_B")
    return made_a, made_b, {"A": f"{stem}vera_D", "B": f"{stem}vera_B"}


def _weighed(
    found: Found, module: str, parts: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """MTL-LoRA's A, and the one B that its several come to. Raises AdapterError."""
    (a,), (b,) = pair_of(found, module, parts, ("lora_A",)), pair_of(found, module, parts, ("lora_B",), 3)
    weights, values = pair_of(found, module, parts, ("weights", _VALUES), 1)
    sharpness, rank = config.get("weights_sharpness"), a.shape[0]
    shapes = (*weights.shape, *b.shape[1:2], *values.shape)
    where = [f"{found.path}: {module}", f"lora_A is {a.shape}, lora_B {b.shape}, weights {weights.shape}"]
    if b.shape != shapes or values.shape != (rank,):
        tip = "the file is of two trainings: restore it"
        raise AdapterError("MTL-LoRA is a lora_B (n, out, r), n weights and r values", where=where, help=tip)
    if isinstance(sharpness, bool) or not isinstance(sharpness, int | float) or not 0 < sharpness < 1e30:
        what = f"weights_sharpness = {sharpness!r}, which divides its weights, is none"
        raise AdapterError(what, where=where, help="restore adapter_config.json from the training")
    mixed = made(b.shape[1:], "weighed", [b, weights, values], sharpness=float(sharpness))
    return a, mixed, {"A": "", "B": ""}


def _count(found: Found, module: str, a: Tensor, b: Tensor, config: Mapping[str, Any]) -> int:
    """Of how many parts of a fused projection the factors are; 1 of a linear layer. Raises AdapterError."""
    r, enabled = config["r"], [part for part in "qkv" if part in config.get("attn_matrices", ())]
    count = len(enabled) if module.endswith(_FUSED) else 1
    if a.shape[0] != r * count or b.shape[1] != r:
        what = f"adapter_config.json says rank {r}, and lora_A is {a.shape}, lora_B {b.shape}"
        raise AdapterError(what, where=[f"{found.path}: {module}"], help="config and file are not of one training")
    return count


def _scales(found: Found, modules: Mapping[str, tuple[str, dict[str, Tensor]]], config: Mapping[str, Any]) -> Adapter:
    """(IA)³: what multiplies weight and bias is alpha * lora_B."""
    lora: dict[str, dict[str, Tensor]] = {}
    names: dict[str, str] = {}
    for module, (name, parts) in modules.items():
        if parts.keys() != {"lora_B"} or parts["lora_B"].shape[1:] != (1,):
            what = "(IA)³ is one lora_B (out, 1) for each module"
            raise AdapterError(what, where=[f"{found.path}: {module}"], help="restore the file from the training")
        if module.endswith(_FUSED) and not {*"qkv"} <= set(config.get("attn_matrices", ())):
            what = "(IA)³ on some parts of a fused projection is not read"
            raise NotSupported(what, where=[f"{found.path}: {module}"], help="merge it with AdapterHub")
        one, alpha = parts["lora_B"], float(config["alpha"])
        lora[module] = {"ia3_l": one if alpha == 1 else add(Zeros(F32, one.shape), [Dense(one, alpha)])}
        names[f"{module}.ia3_l"] = f"{module}.loras.{name}.lora_B"
    made = {"peft_type": "IA3", "feedforward_modules": [], "target_modules": sorted(lora)}
    return Adapter(found.path, made, lora, {}, names, metadata=found.metadata)


def _is_shared(name: str) -> bool:
    """Whether several modules use the tensor."""
    match = _ANY.fullmatch(name)
    return match is not None and match["room"] == "shared_parameters"


FORMAT = Format(
    "adapterhub",
    TOOL,
    recognise,
    read,
    marks=("loras.", "shared_parameters.", *(f"{room}." for room in NONLINEAR)),
    files=(
        "adapter.safetensors",
        "pytorch_adapter.bin",
        "model_adapter_fusion.safetensors",
        "pytorch_model_adapter_fusion.bin",
    ),
    heads=("model_head.safetensors", "pytorch_model_head.bin"),
    shared=_is_shared,
)
