"""Headers that were given to be written as they are, such as those of a base that is restored: as long as the tensors
are still those that they describe.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..files.safetensors import header_alone
from ..lazy.dtypes import Dtype
from ..lazy.tensor import Shape
from .pipelines import prefix_of

Described = Mapping[str, tuple[Dtype, Shape]]


def with_true_headers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the headers of a folder in which a later surgery changed a name, a dtype, a shape or a
    shard, and without the index that would be carried with them.
    """
    if not checkpoint.headers:
        return checkpoint
    shards = {shard: _held(checkpoint, shard) for shard in {checkpoint.weight_map[n] for n in checkpoint.tensors}}
    there = {shard: raw for shard, raw in checkpoint.headers.items() if shard in shards}
    wrong = {shard for shard, raw in there.items() if _described(raw, shard) != shards[shard]}
    stale = {_folder(shard) for shard in (*wrong, *(checkpoint.headers.keys() - shards.keys()))}
    index = checkpoint.index_name if "" in stale else None
    return replace(
        checkpoint,
        headers={shard: raw for shard, raw in there.items() if _folder(shard) not in stale},
        files={path: file for path, file in checkpoint.files.items() if path != index},
    )


def _held(checkpoint: Checkpoint, shard: str) -> Described:
    """What the shard holds now, under the names that its file has."""
    at = prefix_of(checkpoint, shard)
    names = (name for name, place in checkpoint.weight_map.items() if place == shard and name in checkpoint.tensors)
    return {n.removeprefix(at): (t.dtype, t.shape) for n in names for t in [checkpoint.tensors[n]]}


def _described(raw: bytes, shard: str) -> Described:
    return {name: (entry.dtype, tuple(entry.shape)) for name, entry in header_alone(raw, shard).entries.items()}


def _folder(shard: str) -> str:
    return shard.rpartition("/")[0]
