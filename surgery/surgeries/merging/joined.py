"""Modules that a base stores apart, fused for an adapter that was trained on the whole, and split again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...checkpoint import Checkpoint
from ...models.fused.row import Site
from ..split import split_at


def stored_apart(checkpoint: Checkpoint, sites: Sequence[Site]) -> list[Site]:
    """Those of which the checkpoint has the parts, and not the fused module."""
    return [site for site in sites if not any(name in checkpoint.tensors for name, _ in site.names())]


def apart_again(fused: Checkpoint, sites: Sequence[Site], before: Checkpoint) -> Checkpoint:
    """The checkpoint with these modules split, each part in the shard that it was in `before`."""
    made = split_at(fused, sites)
    weight_map = {name: before.weight_map.get(name, shard) for name, shard in made.weight_map.items()}
    return replace(made, weight_map=weight_map, dropped=fused.dropped)
