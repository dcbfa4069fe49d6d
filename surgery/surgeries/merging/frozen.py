"""Copies of the base's own tensors in an adapter's file: they replace nothing.

PEFT writes the frozen weight of an embedding or a head beside its LoRA, `lm_head.base_layer.weight`. A live model
loads it over the base's, where it changes nothing; so a factor for such an adapter, or a second adapter on the same
module, is as good as on any other module.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...checkpoint import Checkpoint
from ...files.peft import TOKENS, Adapter
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Tensor, add
from .changes import place_of
from .tied import Group


def without_copies(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float], groups: Sequence[Group]
) -> list[Adapter]:
    """The adapters without what they hold of the base as it is, dropped by name.

    Looked at is only what matters: what a weight other than 1 is on, and what several adapters change. Reads it, and
    the base's, window by window, up to the first that differs. Tied tensors count together: all are copies, or none.
    """
    holder = {name: group.holder for group in groups for name in group.names}
    touched = [{holder.get(name, name) for name in (*_whole(one).values(), *_changed(one))} for one in adapters]
    several = {name for name, count in Counter(name for names in touched for name in names).items() if count > 1}
    found = []
    for one, weight in zip(adapters, weights, strict=True):
        asked = {key: name for key, name in _whole(one).items() if weight != 1 or holder.get(name, name) in several}
        found.append(_without(one, _copies(checkpoint, one, asked, holder)))
    return found


def _whole(adapter: Adapter) -> dict[str, str]:
    """The base tensor whose place each would take."""
    return {key: place_of(key) for key in adapter.whole if not TOKENS.fullmatch(key)}


def _changed(adapter: Adapter) -> list[str]:
    """The tensors that the adapter adds to, or replaces rows of."""
    rows = [f"{found['module']}.weight" for name in adapter.whole if (found := TOKENS.fullmatch(name))]
    return [*(f"{module}.weight" for module in adapter.lora), *adapter.deltas, *rows]


def _copies(checkpoint: Checkpoint, adapter: Adapter, names: Mapping[str, str], holder: Mapping[str, str]) -> set[str]:
    """Of what the adapter holds, those that are the base's tensor of their name."""
    equal = {key for key, name in names.items() if _is_copy(adapter.whole[key], checkpoint.tensors.get(name))}
    differing = {holder.get(name, name) for key, name in names.items() if key not in equal}
    return {key for key in equal if holder.get(names[key], names[key]) not in differing}


def _is_copy(tensor: Tensor, base: Tensor | None) -> bool:
    """Whether the tensor is the base's, bit by bit, or in a wider dtype that holds the same numbers."""
    from ...evaluation.compare import same

    if base is None or base.shape != tensor.shape:
        return False
    wider = {base.dtype, tensor.dtype} <= set(ARITHMETIC) and tensor.dtype.bits > base.dtype.bits
    return same(tensor, add(base, [], tensor.dtype) if wider else base)


def _without(adapter: Adapter, keys: set[str]) -> Adapter:
    if not keys:
        return adapter
    gone = {adapter.names[key]: adapter.whole[key] for key in keys}
    kept = {key: tensor for key, tensor in adapter.whole.items() if key not in keys}
    return replace(adapter, whole=kept, dropped={**adapter.dropped, **gone})
