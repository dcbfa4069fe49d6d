"""Adapters of AdapterHub's `adapters`: `pytorch_adapter.bin` or `adapter.safetensors`, with an adapter_config.json.

    X.loras.NAME.lora_A (r, in), .lora_B (out, r)      scale alpha / r; `composition_mode: add`
    c_attn of GPT-2: (n * r, in), (n * out / 3, r)     the n of q, k and v in `attn_matrices`, as loralib's MergedLinear
    X.loras.NAME.lora_B (out, 1)                       (IA)³, `composition_mode: scale`: weight and bias times
                                                       alpha * lora_B
    X.loras.NAME.vera_D (r, r), .vera_B (out, out)     VeRA: vera_B @ B @ vera_D @ A; A and B, which all modules share,
    shared_parameters.NAME.lora_A, .lora_B             are in the file

What has a nonlinearity of the input is refused by name: bottlenecks, gates, prefixes, fusion; and its DoRA, whose
lengths are of W + B @ A without the scale, and which scales the bias: no kind of PEFT's.

Source: adapters 1.3.0, methods/lora.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...errors import AdapterError, FormatError, NotSupported, listed
from ...lazy.dense import Dense
from ...lazy.dtypes import F32
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, Zeros, add
from ..peft import Adapter
from .format import Format, Found, Said, pair_of, strangers
from .lora import lora_adapter
from .loralib import placed

TOOL = "AdapterHub"
_LORA = re.compile(r"(?P<module>.+)\.loras\.(?P<name>[^.]+)\.(?P<part>.+)")
_SHARED = re.compile(r"(?:.+\.)?shared_parameters\.(?P<name>[^.]+)\.(?P<part>lora_[AB])")
_ANY = re.compile(r".+\.(?:loras|adapters|shared_parameters|prefix_tunings|reft_layer|adapter_fusion_layer)\..+")
# What else it trains, by a part of the names, and why it has no place in weights.
REFUSED: Mapping[str, str] = {
    ".gate.": "a gate is a sigmoid of the input",
    ".m.weight": "its DoRA takes the lengths of W + B·A, unscaled, and multiplies the bias, as no kind of PEFT's does",
    ".task_specific.": "MTL-LoRA weighs several B's: merge it with AdapterHub",
    ".adapter_fusion_layer.": "AdapterFusion is attention over what adapters compute for each token",
    ".adapter_down.": "a bottleneck has a nonlinearity between down and up",
    ".adapters.": "a bottleneck has a nonlinearity between down and up",
    "prefix": "a prefix trains states, and no weights of the base",
    "reft": "ReFT edits some positions only",
}
_FUSED = "c_attn"  # the one fused projection whose parts are q, k and v, one after another


def recognise(found: Found) -> str:
    """What tells it."""
    names = [name for name in found.tensors if _ANY.fullmatch(name)]
    said = str(found.config.get("version", "")).startswith("adapters.")
    if not names or not (said or any(".loras." in name for name in names)):
        return ""
    version = f", adapter_config.json says version {found.config['version']}" if said else ""
    return f"{names[0]} and such are called as its parts are{version}"


def read(found: Found, said: Said) -> Adapter:
    """The adapter. Raises FormatError, AdapterError, NotSupported."""
    for part, why in REFUSED.items():
        if mine := [name for name in found.tensors if part in name]:
            tip = "serve it live, with AdapterHub" if "merge it" not in why else "train it as LoRA"
            raise NotSupported(
                f"it has no exact place in weights: {why}", where=[found.path, *listed(mine, 2)], help=tip
            )
    config = _config(found)
    modules, shared = _modules(found)
    if config.get("composition_mode", "add") == "scale":
        return _scales(found, modules, config)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, (name, parts) in modules.items():
        a, b, files = _factors(found, module, parts, shared)
        count = _count(found, module, a, b, config)
        enabled = tuple(part in config.get("attn_matrices", ()) for part in "qkv") if module.endswith(_FUSED) else None
        lora[module] = {"lora_A.weight": a, "lora_B.weight": placed(b, count, enabled)}
        names |= {f"{module}.lora_{x}.weight": files[x] or f"{module}.loras.{name}.lora_{x}" for x in "AB"}
        ranks[module] = (a.shape[0], float(config["alpha"]) * count)
    return lora_adapter(found, TOOL, lora, names, ranks)


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
        if match := _SHARED.fullmatch(name):
            shared[match["part"]] = (name, tensor)
        elif match := _LORA.fullmatch(name):
            own, parts = modules.setdefault(match["module"], (match["name"], {}))
            if own != match["name"]:
                where = [f"{found.path}: {match['module']}", own, match["name"]]
                raise FormatError("the file holds two adapters", where=where, help="save each in a file of its own")
            parts[match["part"]] = tensor
        else:
            rest.append(name)
    if rest:
        raise strangers(found, sorted(rest), TOOL)
    return modules, shared


def _factors(
    found: Found, module: str, parts: Mapping[str, Tensor], shared: Mapping[str, tuple[str, Tensor]]
) -> tuple[Tensor, Tensor, dict[str, str]]:
    """A and B of the module, and their names in the file where these are not its own: VeRA's are products."""
    if "vera_B" not in parts:
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


FORMAT = Format(
    "adapterhub",
    TOOL,
    recognise,
    read,
    files=("adapter.safetensors", "pytorch_adapter.bin"),
    heads=("model_head.safetensors", "pytorch_model_head.bin"),
    shared=lambda name: bool(_SHARED.fullmatch(name)),
)
