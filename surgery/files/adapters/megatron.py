"""LoRA of Megatron-Bridge and NeMo, on Megatron's modules, which hold what the base stores apart.

    decoder.layers.N.self_attention.linear_qkv.adapter.linear_in.weight (r, in), .linear_out.weight (out, r)
        rows by group: the heads of q that share a k and a v, then that k, then that v
    decoder.layers.N.mlp.linear_fc1.adapter…        gate's rows, then up's
    …linear_proj, …linear_fc2                       o_proj, down_proj
    …linear_qkv.adapter_q, _k, _v; …linear_fc1.adapter_gate, _up     "canonical": one for each, in plain rows

PEFT's shapes; alpha is in the run's config, and so asked for. Heads are in the base's config.json, and so the rows are
put right where the base is at hand.
Source: Megatron-Bridge 067f987, peft/lora.py, peft/canonical_lora.py, models/conversion/param_mapping.py; no tool of it
runs on a CPU, so that what is here is held against its layout alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, NotSupported
from ...lazy.tensor import Tensor, narrow, reshape
from ..peft import Adapter
from .format import Format, Found, Said, all_grouped, pair_of, told_alpha
from .lora import lora_adapter, numbers

TOOL = "Megatron"
_NAME = re.compile(
    r"(?:module\.)*(?P<module>decoder\.layers\.\d+\..+\.adapter(?:_[a-z]+)?)\.(?P<part>linear_(?:in|out)\.weight)"
)
_PAIR = ("linear_in.weight", "linear_out.weight")
_SHARED = re.compile(r".+\.linear_(?:qkv|fc1)\.adapter\.linear_in\.weight")
TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})  # model types of whose modules these are the names
# What of the base is in each of Megatron's modules.
_QKV = tuple(f"self_attn.{x}_proj" for x in "qkv")
_FC1 = ("mlp.gate_proj", "mlp.up_proj")
_MODULES: Mapping[str, tuple[str, ...]] = {
    "self_attention.linear_qkv.adapter": _QKV,
    "self_attention.linear_proj.adapter": ("self_attn.o_proj",),
    "mlp.linear_fc1.adapter": _FC1,
    "mlp.linear_fc2.adapter": ("mlp.down_proj",),
    **{f"self_attention.linear_qkv.adapter_{x}": (module,) for x, module in zip("qkv", _QKV, strict=True)},
    **{f"mlp.linear_fc1.adapter_{x}": (module,) for x, module in zip(("gate", "up"), _FC1, strict=True)},
}


def recognise(found: Found) -> str:
    """What tells it."""
    names = [name for name in found.tensors if _NAME.fullmatch(name)]
    return f"{names[0]} and such are called as its LoRA is" if names else ""


def read(found: Found, said: Said) -> Adapter:
    """The adapter, on Megatron's modules: `fit` gives it the base's. Raises FormatError, AdapterError."""
    modules = all_grouped(found, _NAME, TOOL)
    files = {(match["module"], match["part"]): name for name in found.tensors if (match := _NAME.fullmatch(name))}
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, parts in modules.items():
        a, b = pair_of(found, module, parts, _PAIR)
        if a.shape[0] != b.shape[1]:
            what = f"linear_in {a.shape} and linear_out {b.shape} are not (r, in) and (out, r)"
            tip = "pieces of a run on several devices look like this: gather them in Megatron"
            raise AdapterError(what, where=[f"{found.path}: {module}"], help=tip)
        lora[module] = {"lora_A.weight": a, "lora_B.weight": b}
        names |= {f"{module}.lora_{x}.weight": files[module, part] for x, part in zip("AB", _PAIR, strict=True)}
        ranks[module] = (a.shape[0], told_alpha(found, said, a.shape[0], TOOL))
    return lora_adapter(found, TOOL, lora, names, ranks, dialect=TOOL)


def fit(adapter: Adapter, config: Mapping[str, Any], names: Collection[str]) -> Adapter:
    """The adapter under HF's names, q, k and v, gate and up apart. Raises NotSupported, AdapterError."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    if (kind := str((text or {}).get("model_type", ""))) not in TYPES:
        what = f"what Megatron's modules are called in model type `{kind}` is not known"
        tip = f"known: {', '.join(sorted(TYPES))}; else convert it with Megatron-Bridge, which writes PEFT's form"
        raise NotSupported(what, where=[adapter.path], help=tip)
    lora: dict[str, dict[str, Tensor]] = {}
    known, alpha = dict[str, str](), adapter.config.get("lora_alpha")
    for module, parts in adapter.lora.items():
        for name, b in _apart(adapter, module, parts["lora_B.weight"], text or {}).items():
            if name in lora:
                where = [f"{adapter.path}: {module}", name]
                raise AdapterError("two adapters are of one module", where=where, help="keep one of them")
            lora[name] = {"lora_A.weight": parts["lora_A.weight"], "lora_B.weight": b}
            known |= {f"{name}.{part}": adapter.names[f"{module}.{part}"] for part in parts}
    said = numbers({name: (parts["lora_A.weight"].shape[0], alpha) for name, parts in lora.items()})
    made = {**adapter.config, **said, "target_modules": sorted(lora)}
    return replace(adapter, lora=lora, names=known, config=made, dialect="")


def _apart(adapter: Adapter, module: str, b: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """B of each of the base's modules that are in Megatron's. Raises NotSupported, AdapterError."""
    found = re.fullmatch(r"decoder\.layers\.(\d+)\.(.+)", module)
    leaves = _MODULES.get(found[2] if found else "")
    if found is None or leaves is None:
        tip = "convert it with Megatron-Bridge, which writes PEFT's form"
        raise NotSupported(
            "LoRA on this module of Megatron's is not read", where=[f"{adapter.path}: {module}"], help=tip
        )
    cut = _CUTS.get(len(leaves))
    parts = cut(adapter, module, b, config) if cut else [b]
    return {f"model.layers.{found[1]}.{leaf}": part for leaf, part in zip(leaves, parts, strict=True)}


def _by_group(adapter: Adapter, module: str, b: Tensor, config: Mapping[str, Any]) -> list[Tensor]:
    """The rows of q, of k and of v, which lie group by group."""
    heads = config.get("num_attention_heads")
    groups = config.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(groups, int) or groups < 1 or heads % groups:
        what = f"config.json says num_attention_heads = {heads!r}, num_key_value_heads = {groups!r}"
        raise AdapterError(what, where=[f"{adapter.path}: {module}"], help="the base is another one")
    slots = heads // groups + 2
    dim = config.get("head_dim") or int(config.get("hidden_size") or 0) // heads
    if b.shape[0] != groups * slots * dim:
        what = f"{b.shape[0]} rows are not {groups} groups of {slots} heads of {dim}"
        tip = "the base is another one, or the file is a piece of a run on several devices: gather it in Megatron"
        raise AdapterError(what, where=[f"{adapter.path}: {module}"], help=tip)
    split = reshape(b, (groups, slots, dim, b.shape[1]))
    parts = [narrow(split, 1, at, count) for at, count in ((0, slots - 2), (slots - 2, 1), (slots - 1, 1))]
    return [reshape(part, (part.size // b.shape[1], b.shape[1])) for part in parts]


def _halves(adapter: Adapter, module: str, b: Tensor, config: Mapping[str, Any]) -> list[Tensor]:
    """The rows of gate, and of up."""
    half, odd = divmod(b.shape[0], 2)
    wide = config.get("intermediate_size")
    if odd or (isinstance(wide, int) and half != wide):
        what = f"{b.shape[0]} rows are not gate's and up's {wide} each"
        tip = "the base is another one, or the file is a piece of a run on several devices: gather it in Megatron"
        raise AdapterError(what, where=[f"{adapter.path}: {module}"], help=tip)
    return [narrow(b, 0, 0, half), narrow(b, 0, half, half)]


_CUTS: Mapping[int, Callable[[Adapter, str, Tensor, Mapping[str, Any]], list[Tensor]]] = {3: _by_group, 2: _halves}

FORMAT = Format(
    "megatron",
    TOOL,
    recognise,
    read,
    marks=(".adapter",),
    takes=frozenset({"alpha"}),
    shared=lambda name: bool(_SHARED.fullmatch(name)),
    fit=fit,
)
