"""Adapters of tinker: PEFT's folder, with names of its own that follow from the base.

    model.unembed_tokens                 lm_head; of a base whose head is tied, that head, which LoRA then unties
    X.experts.w1, .w3, .w2               gate, up and down of all experts: lora_A (E, r, in), lora_B (E, out, r); what
                                         all experts share is of E = 1; what the model has not is empty
    model.layers.0…                      model.language_model.layers.0…, of a model that sees
    X.attn.q_proj                        X.self_attn.q_proj, of gpt-oss

Experts are told one by one here; what the base calls the rest is looked up where it is at hand.
Source: tinker-cookbook 9dfcc3a, weights/_merge_utils.py, weights/_merge.py `expand_expert_lora_tensors`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, NotSupported
from ...lazy.tensor import Tensor, narrow, reshape
from ..peft import Adapter
from .format import Format, Found, Said
from .lora import renamed

TOOL = "tinker"
_HEAD = "model.unembed_tokens"
_EXPERTS = re.compile(r"(?P<holder>.+\.experts)\.(?P<leaf>w[123])")
_LEAVES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_PAIR = ("lora_A.weight", "lora_B.weight")
_SEES = "model.language_model."
_TIED = (
    "tinker trained the head, which the base ties to its embedding: the head alone has the change; tinker-cookbook"
    " adds it to the embedding, too"
)


def told(adapter: Adapter) -> Adapter:
    """The adapter with its experts one by one, and as one in tinker's names, where it is tinker's. Raises
    AdapterError, NotSupported.
    """
    stacks = [one for one, parts in adapter.lora.items() if _EXPERTS.fullmatch(one) and _is_stack(parts)]
    if not stacks and _HEAD not in adapter.lora:
        return adapter
    if patterns := [key for key in ("rank_pattern", "alpha_pattern") if adapter.config.get(key)]:
        tip = "convert it with tinker-cookbook, which writes PEFT's form"
        raise NotSupported(f"{patterns[0]} in an adapter of tinker's is not read", where=[adapter.path], help=tip)
    lora, names = dict(adapter.lora), dict(adapter.names)
    empty, partly = dict[str, Tensor](), set[str]()
    for module in stacks:
        parts = lora.pop(module)
        files = {part: names.pop(f"{module}.{part}") for part in parts}
        if not any(tensor.size for tensor in parts.values()):
            empty |= {files[part]: tensor for part, tensor in parts.items()}
            continue
        count = _count(adapter, module, parts)
        partly |= {files[part] for part, tensor in parts.items() if tensor.shape[0] < count}
        for i in range(count):
            one = f"{module.rpartition('.')[0]}.{i}.{module.rpartition('.')[2]}"
            lora[one] = {part: _one(tensor, i) for part, tensor in parts.items()}
            names |= {f"{one}.{part}": files[part] for part in parts}
    inputs = tuple(replace(one, partly=one.partly | (partly & one.tensors.keys())) for one in adapter.inputs)
    dropped = {**adapter.dropped, **empty}
    return replace(adapter, lora=lora, names=names, inputs=inputs, dropped=dropped, dialect=TOOL, format=_FORMAT)


_FORMAT = {"format": TOOL, "why": "unembed_tokens, or experts.w1 of three axes, are called as its LoRA is"}


def _is_stack(parts: Mapping[str, Tensor]) -> bool:
    return parts.keys() == set(_PAIR) and all(len(tensor.shape) == 3 or not tensor.size for tensor in parts.values())


def _count(adapter: Adapter, module: str, parts: Mapping[str, Tensor]) -> int:
    """How many experts there are. Raises AdapterError."""
    a, b = (parts[part] for part in _PAIR)
    counts = {a.shape[0], b.shape[0]} - {1} if len(a.shape) == len(b.shape) == 3 else set()
    if len(counts) != 1 or a.shape[1] != b.shape[2]:
        what = f"lora_A {a.shape} and lora_B {b.shape} are not (experts, r, in) and (experts, out, r), nor shared"
        raise AdapterError(what, where=[f"{adapter.path}: {module}"], help="the adapter is incomplete: save it again")
    return counts.pop()


def _one(stack: Tensor, i: int) -> Tensor:
    return reshape(narrow(stack, 0, i if stack.shape[0] > 1 else 0, 1), stack.shape[1:])


def fit(adapter: Adapter, config: Mapping[str, Any], names: Collection[str]) -> Adapter:
    """The adapter under the base's names."""
    new = {module: _called(module, names) for module in adapter.lora}
    tied = _HEAD in new and config.get("tie_word_embeddings") is True
    notes = (*adapter.notes, *([_TIED] if tied else []))
    return replace(renamed(adapter, new), dialect="", notes=notes)


def _called(module: str, names: Collection[str]) -> str:
    """What the base calls the module."""
    if module == _HEAD:
        return next((name.removesuffix(".weight") for name in names if name.endswith("lm_head.weight")), "lm_head")
    found = re.fullmatch(r"(?P<holder>.+\.experts\.\d+)\.(?P<leaf>w[123])", module)
    if found and f"{module}.weight" not in names:
        module = f"{found['holder']}.{_LEAVES[found['leaf']]}"
    if ".attn." in module and not any(".attn." in name for name in names):
        module = module.replace(".attn.", ".self_attn.")
    sees = module.startswith("model.") and not module.startswith(_SEES) and any(n.startswith(_SEES) for n in names)
    return _SEES + module.removeprefix("model.") if sees else module


def _never(found: Found, said: Said) -> Adapter:
    raise AssertionError("it is told where PEFT's folder is opened")


FORMAT = Format("tinker", TOOL, lambda found: "", _never, fit=fit)
