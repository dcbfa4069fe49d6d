"""Adapters that are no LoRA, on fused modules of which the base stores the parts.

What such an adapter does to a fused weight need not be a change of its parts by themselves: the parts are fused, the
adapter is merged, and the result is taken apart again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...checkpoint import Checkpoint
from ...errors import PlanError, listed
from ...files.peft import Adapter
from ...models.fused.row import Site
from ..split import fuse_at, sites_held, split_at


def check_one_way(adapters: Sequence[Adapter], sites: Sequence[Site]) -> None:
    """Raise PlanError where one adapter is on these modules fused, and another on their parts."""
    for one in adapters:
        if both := sites_held(one, sites, fused=False):
            raise PlanError(
                f"one adapter was trained on {both[0].row.fused}, another on its parts, and the base stores the parts",
                where=[one.path, *listed([site.module for site in both])],
                help="merge them one after another",
            )


def merged_fused(
    checkpoint: Checkpoint, sites: Sequence[Site], merge: Callable[[Checkpoint], Checkpoint]
) -> Checkpoint:
    """The checkpoint as `merge` leaves it with these modules fused, with their parts where they were. What it leaves
    as it was stays as it was stored.
    """
    if not sites:
        return merge(checkpoint)
    fused = fuse_at(checkpoint, sites)
    merged = merge(fused)
    made = split_at(merged, sites)
    same = {
        part: checkpoint.tensors[part]
        for site in sites
        for whole, parts in site.names()
        if whole in fused.tensors and merged.tensors.get(whole) == fused.tensors[whole]
        for part in parts
    }
    tensors = {**made.tensors, **same}
    order = [*(name for name in checkpoint.tensors if name in tensors), *tensors]
    return replace(
        made,
        tensors={name: tensors[name] for name in dict.fromkeys(order)},
        weight_map={name: checkpoint.weight_map.get(name, made.weight_map[name]) for name in tensors},
        dropped=merged.dropped,
        history=merged.history,
        notes=merged.notes,
    )
