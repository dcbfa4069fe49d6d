"""Layers that an adapter was trained on several times over (PEFT's `layer_replication`), written as real layers.

    [[0, 4], [2, 5]]  ->  layers 0, 1, 2, 3, 2, 3, 4 of the base are 0 to 6 of the result

Which modules are layers is PEFT's own rule. Source: peft 0.21.2, tuners/tuners_utils.py `replicate_layers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotSupported, series
from ...files.peft import Adapter
from ..layers import moved

_LAYER = re.compile(r"(?P<stack>(?:model\.)*(?:bert\.)?(?:layers|encoder\.layer|h))\.(?P<index>\d+)\.(?P<rest>.+)")
_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
# Settings that say of layers by their place what they are, other than by one entry for each: another place, another
# layer.
_BY_PLACE = """
    attn_layer_period cross_attention_layers decoder_sparse_step expert_layer_period first_k_dense_replace
    full_attention_interval hybrid_layer_ids interleave_moe_layer_step mlp_only_layers moe_layer_freq
    moe_layer_frequency moe_layers num_kv_shared_layers
""".split()


def replicated(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The checkpoint with the layers that the adapters were trained on, and config.json with their number; as it is
    without any.

    Moves no value. Layers that are not used are dropped by name. Raises NotSupported, AdapterError.
    """
    asked = [one.config.get("layer_replication") or [] for one in adapters]
    if not any(asked):
        return checkpoint
    if any(one != asked[0] for one in asked):
        where = [f"{one.path}: layer_replication = {said!r}" for one, said in zip(adapters, asked, strict=True)]
        raise NotSupported(
            "the adapters were trained on different replications of layers", where=where, help="merge one of them"
        )
    found = {name: layer for name in checkpoint.tensors if (layer := _LAYER.fullmatch(name))}
    order = _order(asked[0], adapters[0], checkpoint, found)
    before = len({layer["index"] for layer in found.values()})
    made = moved(checkpoint, next(iter(found.values()))["stack"], order)
    if "config.json" in made.files:
        made = made.with_config(_with_layers(checkpoint, before, order))
    note = f"{before} layers became {len(order)}, as the adapter's layer_replication says: {series(map(str, order))}"
    return made.with_step({"surgery": "replicate", "layers": order}, notes=(*made.notes, note))


def _order(said: Any, adapter: Adapter, checkpoint: Checkpoint, found: Mapping[str, re.Match[str]]) -> list[int]:
    """Which layer of the base each layer of the result is."""
    where = [f"{adapter.path}/adapter_config.json", f"layer_replication = {said!r}"]
    stacks = sorted({layer["stack"] for layer in found.values()})
    if len(stacks) != 1:
        what = (
            "which layers are to be replicated is not known: the base has"
            f" {', '.join(stacks) or 'none that PEFT would replicate'}"
        )
        raise NotSupported(what, where=[*where, checkpoint.path], help="merge it with PEFT")
    count = 1 + max(int(layer["index"]) for layer in found.values())
    pairs = [
        pair for pair in said if isinstance(pair, list | tuple) and len(pair) == 2 and all(type(n) is int for n in pair)
    ]
    if pairs != said or not all(0 <= start < stop <= count for start, stop in pairs):
        what = f"layer_replication is no list of [start, end) of the base's {count} layers"
        raise AdapterError(
            what, where=[*where, checkpoint.path], help="the adapter belongs to another base, or its file is damaged"
        )
    return [layer for start, stop in pairs for layer in range(start, stop)]


def _with_layers(checkpoint: Checkpoint, before: int, order: Sequence[int]) -> dict[str, Any]:
    """config.json for these layers: their number, and each list that has an entry for each of them."""
    config = dict(checkpoint.config)
    for place in (None, *(key for key, value in config.items() if isinstance(value, Mapping))):
        section = config if place is None else dict(config[place])
        counts = [key for key in _COUNTS if section.get(key) == before]
        if not counts:
            continue
        if fixed := sorted(key for key in _BY_PLACE if section.get(key) not in (None, 0, 1, False, [])):
            where = [f"config.json: {key} = {section[key]!r}" for key in fixed]
            raise NotSupported(
                "config.json says of layers by their place what they are: copies would be others", where=where
            )
        lists = [
            key for key, value in section.items() if "layer" in key and isinstance(value, list) and len(value) == before
        ]
        section |= dict.fromkeys(counts, len(order)) | {key: [section[key][old] for old in order] for key in lists}
        return section if place is None else config | {place: section}
    tip = "its config.json is another model's, or the model has layers of its own kind"
    raise NotSupported(f"config.json does not say that the base has {before} layers", where=[checkpoint.path], help=tip)
