"""Modules that a base stores apart, fused for an adapter that was trained on the whole, and split again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...adapters.methods import method_of
from ...checkpoint import Checkpoint
from ...errors import PlanError, listed
from ...files.peft import Adapter
from ...models.fused.row import Site
from ..split import sites_held, split_at


def stored_apart(checkpoint: Checkpoint, sites: Sequence[Site]) -> list[Site]:
    """Those of which the checkpoint has the parts, and not the fused module."""
    return [site for site in sites if not any(name in checkpoint.tensors for name, _ in site.names())]


def check_one_way(adapters: Sequence[Adapter], sites: Sequence[Site]) -> None:
    """Raise PlanError where one adapter is on these modules fused, and another on their parts."""
    for one in adapters:
        if both := sites_held(one, sites, fused=False):
            raise PlanError(
                f"one adapter was trained on {both[0].row.fused}, another on its parts, and the base stores the parts",
                where=[one.path, *listed([site.module for site in both])],
                help="merge them one after another",
            )


def check_divisible(adapter: Adapter, sites: Sequence[Site]) -> None:
    """Raise PlanError where these modules are taken apart for another adapter, and this one, on the whole, is of a kind
    that has no parts.
    """
    if sites and (method := method_of(adapter)):
        raise PlanError(
            f"one adapter was trained on {sites[0].row.fused}, another on its parts, and no part of {method.name} is"
            " one",
            where=[adapter.path, *listed([site.module for site in sites])],
            help="merge them one after another, what reads the base, as HiRA does, before the other",
        )


def apart_again(fused: Checkpoint, sites: Sequence[Site], before: Checkpoint) -> Checkpoint:
    """The checkpoint with these modules split, each part in the shard, and the order, that it was in `before`."""
    made = split_at(fused, sites)
    weight_map = {name: before.weight_map.get(name, shard) for name, shard in made.weight_map.items()}
    order = dict.fromkeys((*(name for name in before.tensors if name in made.tensors), *made.tensors))
    tensors = {name: made.tensors[name] for name in order}
    return replace(made, tensors=tensors, weight_map=weight_map, dropped=fused.dropped)
