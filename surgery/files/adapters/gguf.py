"""LoRA in GGUF, as llama.cpp's convert_lora_to_gguf.py writes it: general.type is adapter.

    blk.N.attn_q.weight.lora_a (r, in), .lora_b (out, r)      PEFT's; scale adapter.lora.alpha / r
    token_embd.weight.lora_a (vocabulary, r), .lora_b (dim, r)

Rows of q and k are interleaved, of the architectures whose own weights are; the base's config.json says heads, and so
they are put right where the base is at hand. Names and rows are those of models (`files/gguf/names.py`).
Source: llama.cpp, convert_lora_to_gguf.py, src/llama-adapter.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, NotSupported, series
from ...lazy.tensor import Tensor, permute
from ..gguf.moves import Heads, Move, keys, queries, tripled
from ..gguf.names import ARCHITECTURES
from ..peft import Adapter
from .format import Format, Found, Said, all_grouped, pair_of, told_alpha
from .lora import is_embedding, lora_adapter

TOOL = "llama.cpp"
_NAME = re.compile(r"(?P<module>.+)\.weight\.(?P<part>lora_[ab])")
_PAIR = ("lora_a", "lora_b")
_TURNING: tuple[Move, ...] = (queries, keys, tripled)  # those that change rows, which B has, too
_ALIKE = {"llama": frozenset({"llama", "mistral", "mixtral"})}  # model types that are one architecture there


def recognise(found: Found) -> str:
    """What tells it."""
    said = found.metadata or {}
    return f"general.type is adapter, adapter.type {said.get('adapter.type')}" if _says(said) else ""


def _says(said: Mapping[str, str]) -> bool:
    return said.get("general.type") == "adapter" and "adapter.type" in said


def read(found: Found, said: Said) -> Adapter:
    """The adapter, under HF's names. Raises FormatError, AdapterError, NotSupported."""
    told = found.metadata or {}
    kind, name = told.get("adapter.type"), str(told.get("general.architecture"))
    if kind != "lora" or any(key.startswith("adapter.alora.") for key in told):
        what = f"an adapter of type {kind}, or that acts on some tokens only, is not read"
        raise NotSupported(what, where=[found.path], help="serve it live, with llama.cpp")
    if name not in ARCHITECTURES:
        what = f"what tensors of `{name}` are called is not known"
        tip = f"known: {series(sorted(ARCHITECTURES))}; else take the PEFT adapter that it was made of"
        raise NotSupported(what, where=[found.path], help=tip)
    modules = all_grouped(found, _NAME, TOOL)
    lora: dict[str, dict[str, Tensor]] = {}
    names, ranks = dict[str, str](), dict[str, tuple[int, float | None]]()
    for module, parts in modules.items():
        called = _called(found, name, module)
        lora[called], rank = _factors(found, module, called, parts)
        names |= {f"{called}.{part}": f"{module}.weight.{_PAIR['B' in part]}" for part in lora[called]}
        ranks[called] = (rank, _alpha(found, said, rank))
    turned = any(_move(name, module) for module in modules)
    return lora_adapter(found, TOOL, lora, names, ranks, dialect=TOOL if turned else "")


def _called(found: Found, architecture: str, module: str) -> str:
    """What HF calls the module. Raises NotSupported."""
    called = ARCHITECTURES[architecture].names.get(_key(module), "")
    if not called or "*" in called:
        what = "LoRA on this tensor is not read" + (", a stack of experts" if called else "")
        tip = "take the PEFT adapter that it was made of"
        raise NotSupported(what, where=[f"{found.path}: {module}"], help=tip)
    number = re.match(r"blk\.(\d+)\.", module)
    return called.replace("#", number[1] if number else "")


def _key(module: str) -> str:
    return re.sub(r"^blk\.\d+\.", "blk.", module)


def _move(architecture: str, module: str) -> Move | None:
    """What changed the rows of the module."""
    move = ARCHITECTURES[architecture].moves.get(_key(module))
    return move if move in _TURNING else None


def _factors(found: Found, module: str, called: str, parts: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """PEFT's tensors, and the rank. Raises AdapterError."""
    a, b = pair_of(found, module, parts, _PAIR)
    embedding = is_embedding(called)
    rank = a.shape[1] if embedding else a.shape[0]
    if b.shape[1] != rank:
        what = f"lora_a {a.shape} and lora_b {b.shape} are not of one rank"
        raise AdapterError(what, where=[f"{found.path}: {module}"], help="the file is of two trainings")
    if embedding:
        return {"lora_embedding_A": permute(a, (1, 0)), "lora_embedding_B": b}, rank
    return {"lora_A.weight": a, "lora_B.weight": b}, rank


def _alpha(found: Found, said: Said, rank: int) -> float | None:
    """What the file says, else the user. Raises AdapterError."""
    text = (found.metadata or {}).get("adapter.lora.alpha")
    if text is None:
        return told_alpha(found, said, rank, TOOL)
    try:
        alpha = float(text)
    except ValueError:
        alpha = math.nan
    if said.alpha is not None or not math.isfinite(alpha) or not alpha:
        what = f"the file says adapter.lora.alpha = {text}"
        tip = (
            "leave --alpha away; --scale multiplies what an adapter does" if said.alpha else "convert the adapter again"
        )
        raise AdapterError(what, where=[found.path], help=tip)
    return alpha


def fit(adapter: Adapter, config: Mapping[str, Any], names: Collection[str]) -> Adapter:
    """The adapter with the rows that the base has, for the base of this config.json. Raises AdapterError."""
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    base: Mapping[str, Any] = text or {}
    name = str((adapter.metadata or {}).get("general.architecture"))
    kind, known = str(base.get("model_type")), _ALIKE.get(name, {ARCHITECTURES[name].model_type})
    if kind not in known:
        what = f"the adapter is for `{name}`, and the base is of model type `{kind}`"
        raise AdapterError(what, where=[adapter.path], help=f"its base is one of {', '.join(sorted(known))}")
    heads = base.get("num_attention_heads") or base.get("n_head")
    groups = base.get("num_key_value_heads") or heads
    if not isinstance(heads, int) or not isinstance(groups, int):
        what = f"config.json says num_attention_heads = {heads!r}, num_key_value_heads = {groups!r}"
        raise AdapterError(what, where=[adapter.path], help="the order of rows follows from them: restore config.json")
    lora = dict(adapter.lora)
    for module, parts in adapter.lora.items():
        file = adapter.names[f"{module}.{next(iter(parts))}"]
        if (move := _move(name, file.rpartition(".weight.")[0])) and "lora_B.weight" in parts:
            lora[module] = {**parts, "lora_B.weight": move(parts["lora_B.weight"], Heads(heads, groups))}
    return replace(adapter, lora=lora, dialect="")


FORMAT = Format("gguf", TOOL, recognise, read, takes=frozenset({"alpha"}), fit=fit)
