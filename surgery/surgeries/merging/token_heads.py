"""Tokens that were trained in a head: PEFT computes it without its bias, in training and live.

So the merged bias is zero, and the checkpoint computes what was trained. Source: peft 0.21.2,
tuners/trainable_tokens/layer.py `forward_adapters`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...checkpoint import Checkpoint
from ...files.peft import Adapter
from ...lazy.tensor import Zeros
from .changes import Placed, module_of, place_of
from .tied import Group


def without_biases(
    checkpoint: Checkpoint, adapter: Adapter, names: Iterable[str], placed: Placed, groups: Sequence[Group]
) -> None:
    """Put zeros in the place of the biases of the modules whose weights, `names`, have trained rows, and of what is
    tied to these; a note says so.
    """
    biases = [bias for name in names if (bias := f"{module_of(name)}.bias") in checkpoint.tensors]
    if not biases:
        return
    tied = {name for group in groups if set(biases) & set(group.names) for name in group.names}
    for bias in sorted({*biases, *tied}):
        base = checkpoint.tensors[bias]
        placed.whole[bias] = Zeros(base.dtype, base.shape)
        placed.under |= {adapter.names[key]: one for key, one in adapter.whole.items() if place_of(key) == bias}
    placed.notes.append(
        f"{', '.join(biases)}: zero now, since {adapter.path} trained tokens in that head, which PEFT computes without"
        " its bias, in training, too"
    )
