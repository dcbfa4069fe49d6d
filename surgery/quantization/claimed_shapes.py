"""Shapes that are only claimed, in a JSON beside codes that lie in one row: held against what else tells them.

Codes count through the whole tensor, so that a shape of as many elements decodes without a word, to another weight.
What tells: the module's bias, modules of the same name in other layers, and config.json where a name is one that
most models give to the same linear map. A wrong refusal needs a model that has both shapes, of one number of elements.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from ..errors import series
from ..lazy.tensor import Shape
from .scheme import Source, module_of

HEADS, KEYS, HIDDEN, WIDE, WORDS = "heads", "keys", "hidden", "wide", "words"
WIDTHS = {
    "q_proj": (HEADS, HIDDEN),
    "k_proj": (KEYS, HIDDEN),
    "v_proj": (KEYS, HIDDEN),
    "o_proj": (HIDDEN, HEADS),
    "out_proj": (HIDDEN, HEADS),
    "gate_proj": (WIDE, HIDDEN),
    "up_proj": (WIDE, HIDDEN),
    "down_proj": (HIDDEN, WIDE),
    "fc1": (WIDE, HIDDEN),
    "fc2": (HIDDEN, WIDE),
    "lm_head": (WORDS, HIDDEN),
}
TIP = "take {} from where the model was published; if it is the same there, quantise the model again"


def check_claimed(source: Source, claims: Mapping[str, tuple[str, Shape]]) -> None:
    """Raise FormatError where the (tensor that claims it, shape) of a weight, by its name, contradicts another."""
    usual, known = _usual(claims), _widths(source.checkpoint.config)
    for name, (blob, shape) in claims.items():
        wanted = _by_config(known, name)
        if not wanted or not any(prod(one) == prod(shape) for one in wanted):
            wanted = [usual[_kind(name)][prod(shape)]]
            where, why = _kind(name), f"its like in other layers are {list(wanted[0])}"
        else:
            where, why = "config.json", f"config.json says {series([str(list(one)) for one in wanted], ' or ')}"
        bias = source.tensors.get(f"{module_of(name)}.bias")
        if bias is not None and bias.size != shape[0]:
            where, why = f"{module_of(name)}.bias", f"its bias has {bias.size} elements"
        elif shape in wanted:
            continue
        what = f"the shape of {name} is {list(shape)} by the JSON beside its codes, and {why}"
        raise source.broken(what, [blob, where], TIP.format(blob))


def _kind(name: str) -> str:
    """A name without the numbers of layers."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "#", name)


def _usual(claims: Mapping[str, tuple[str, Shape]]) -> Mapping[str, Mapping[int, Shape]]:
    """The shape that most modules of a name have, of those of as many elements."""
    seen: dict[str, dict[int, Counter[Shape]]] = defaultdict(lambda: defaultdict(Counter))
    for name, (_, shape) in claims.items():
        seen[_kind(name)][prod(shape)][shape] += 1
    return {kind: {n: c.most_common(1)[0][0] for n, c in sizes.items()} for kind, sizes in seen.items()}


def _widths(config: Mapping[str, Any]) -> list[Mapping[str, int]]:
    """What config.json, and those nested in it, say of a model's widths."""
    nested = [said for said in config.values() if isinstance(said, Mapping)]
    return [widths for said in (config, *nested) if (widths := _read(said))]


def _read(said: Mapping[str, Any]) -> Mapping[str, int]:
    """The widths that one config says; {} where it is of no model of this kind."""
    hidden, heads = said.get("hidden_size"), said.get("num_attention_heads")
    if type(hidden) is not int or type(heads) is not int or heads < 1:
        return {}
    each, keys = said.get("head_dim") or hidden // heads, said.get("num_key_value_heads") or heads
    more = {WIDE: said.get("intermediate_size"), WORDS: said.get("vocab_size")}
    if type(each) is int and type(keys) is int:
        more |= {HEADS: heads * each, KEYS: keys * each}
    return {HIDDEN: hidden, **{name: n for name, n in more.items() if type(n) is int}}


def _by_config(known: Iterable[Mapping[str, int]], name: str) -> list[Shape]:
    """The shapes that a weight of this name has by config.json."""
    last = module_of(name).rpartition(".")[2]
    rows, columns = WIDTHS.get(last, ("", ""))
    return [(widths[rows], widths[columns]) for widths in known if rows in widths and columns in widths]
