"""The weights of a PEFT adapter in one file, under any name, with or without an adapter_config.json.

Without one the rank is that of the factors, and what the file does not say is asked for: alpha.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from ...errors import AdapterError, NotSupported
from ...lazy.tensor import Tensor
from ..adapter_config import check_config
from ..peft import PREFIX, Adapter, parse_adapter
from ..peft_parts import PREFIXES
from .format import Format, Found, Said, told_alpha
from .lora import numbers

TOOL = "PEFT"
_LORA = re.compile(r".+\.lora_(?:[AB](?:\.[^.]+)?\.weight|embedding_[AB](?:\.[^.]+)?)")
_ROOTS = re.compile(r"(?:unet|transformer|text_encoder(?:_\d)?|text_encoders|diffusion_model|prior|lora_[a-z]+\d?_).*")
_PARTS = re.compile(rf".+\.(?:{'|'.join(sorted({one for kind in PREFIXES.values() for one in kind}))}).+")


def recognise(found: Found) -> str:
    """What tells it."""
    with_prefix = [name for name in found.tensors if name.startswith(PREFIX)]
    if with_prefix and any(_LORA.fullmatch(name) or _PARTS.fullmatch(name) for name in with_prefix):
        return f"{with_prefix[0]} and such begin as its names do"
    bare = [name for name in found.tensors if _LORA.fullmatch(name) and not _ROOTS.match(name)]
    return (
        f"{bare[0]} and such are called as its LoRA is" if bare and "peft_type" in found.config else _most(found, bare)
    )


def _most(found: Found, bare: list[str]) -> str:
    """The same of names without the prefix, where the file holds nothing but LoRA: a model may hold its own."""
    return f"{bare[0]} and such are called as its LoRA is" if bare and len(bare) == len(found.tensors) else ""


def read(found: Found, said: Said) -> Adapter:
    """The adapter. Raises FormatError, AdapterError, NotSupported."""
    if "peft_type" in found.config:
        if said.alpha is not None:
            tip = "leave --alpha away; --scale multiplies what an adapter does"
            where = [found.path, f"lora_alpha = {found.config.get('lora_alpha')!r}"]
            raise AdapterError("adapter_config.json says the alpha, and --alpha another", where=where, help=tip)
        check_config(found.config, f"{found.path}, adapter_config.json")
        return parse_adapter(found.path, found.config, found.tensors)
    adapter = parse_adapter(found.path, {"peft_type": "LORA"}, found.tensors)
    parts = {part for held in adapter.lora.values() for part in held}
    if not parts or any(_PARTS.fullmatch(f"x.{part}") for part in parts) or any(".lora_" not in f".{p}" for p in parts):
        what = "the file is an adapter of PEFT's without its adapter_config.json, and not of LoRA alone"
        raise NotSupported(what, where=[found.path], help="put the adapter_config.json of the training beside it")
    ranks = {module: _rank(found, module, held) for module, held in adapter.lora.items()}
    missing = "no adapter_config.json lies beside it: put that of the training there"
    alphas = {module: (rank, told_alpha(found, said, rank, TOOL, missing)) for module, rank in ranks.items()}
    dora = any("magnitude" in part for part in parts)
    more = {"use_dora": dora, "lora_bias": any(part.endswith(".bias") for part in parts)}
    config = {"peft_type": "LORA", **numbers(alphas), "target_modules": sorted(adapter.lora), **more}
    return replace(adapter, config=config, notes=(*adapter.notes, "no adapter_config.json: ranks are the factors' own"))


def _rank(found: Found, module: str, parts: Mapping[str, Tensor]) -> int:
    a = parts.get("lora_A.weight") or parts.get("lora_embedding_A")
    if a is None or not a.shape:
        tip = "the adapter's file is incomplete: save it again"
        raise AdapterError("the module has no lora_A", where=[f"{found.path}: {module}"], help=tip)
    if not a.size:
        tip = "an ungathered ZeRO-3 or FSDP save looks like this"
        what = f"lora_A is {a.shape}, and holds nothing"
        raise AdapterError(what, where=[f"{found.path}: {module}"], help=tip)
    return a.shape[0]


FORMAT = Format(
    "peft",
    TOOL,
    recognise,
    read,
    marks=("lora", PREFIX),
    files=("adapter_model.safetensors",),
    takes=frozenset({"alpha"}),
)
