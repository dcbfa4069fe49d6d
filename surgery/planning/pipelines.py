"""Pipelines: each component has shards and an index of its own, in its folder, and names of its own in them."""

from __future__ import annotations

from collections.abc import Mapping

from ..checkpoint import Checkpoint
from ..errors import PlanError, listed
from ..files.index import encode_index


def prefix_of(checkpoint: Checkpoint, shard: str) -> str:
    """What the names of tensors in the shard begin with, and do not in the file: the folder of the component.

    Raises PlanError where a tensor of another component would be in it.
    """
    folder = shard.rpartition("/")[0]
    if folder not in checkpoint.parts:
        return ""
    lost = [n for n, at in checkpoint.weight_map.items() if at == shard and not n.startswith(f"{folder}/")]
    if lost := [name for name in lost if name in checkpoint.tensors]:
        tip = "change the component by itself: a tensor cannot leave it"
        raise PlanError(f"tensors in {folder}/ are not called so", where=[checkpoint.path, *listed(lost)], help=tip)
    return f"{folder}/"


def indices_of(checkpoint: Checkpoint, layout: Mapping[str, str], *, keeps_layout: bool) -> dict[str, bytes]:
    """The index of each component that has several shards, or had one where it `keeps_layout`, by its path."""
    made = {}
    for folder, part in checkpoint.parts.items():
        at = f"{folder}/"
        mine = {n.removeprefix(at): shard.removeprefix(at) for n, shard in layout.items() if n.startswith(at)}
        if part.index and all(f"{at}{shard}" in checkpoint.headers for shard in mine.values()):
            made[f"{at}{part.index_name}"] = part.index
        elif len(set(mine.values())) > 1 or (part.index and keeps_layout):
            size = sum(checkpoint.tensors[f"{at}{name}"].nbytes for name in mine)
            made[f"{at}{part.index_name}"] = encode_index({**part.index_metadata, "total_size": size}, mine)
    return made
