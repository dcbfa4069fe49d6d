"""Which kinds of tensors lie in which shard, by their names alone."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..models.families import EMBEDDINGS, HEADS
from ..names import natural

# What a tensor is for, told from its name: the first row that is found in it.
KINDS = (
    ("norms", r"norm|(?:^|[._])ln(?:_|\d|\.|$)|scale_shift"),
    ("experts", r"(?:^|\.)(?:\w*_)?experts?(?:\.|_|$)"),
    ("attention", r"attn|attention|(?:^|[._])(?:q|k|v|o|qkv|kv)_?(?:proj|lin|\.|_a|_b)|query|to_[qkv]|\bwqkv"),
    ("MLP", r"mlp|ffn|feed_forward|(?:^|[._])fc|gate|up_proj|down_proj|intermediate|dense|(?:^|\.)w[123](?:\.|$)"),
)
EMBEDDING, HEAD, OTHER = "embeddings", "head", "other"
ALL = (EMBEDDING, "attention", "MLP", "experts", "norms", HEAD, OTHER)
_KINDS = tuple((kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in KINDS)


@dataclass(frozen=True, slots=True)
class Piece:
    """Tensors of one kind in one shard."""

    kind: str
    nbytes: int
    names: tuple[str, ...]


def kind_of(name: str) -> str:
    """What the tensor of that name is for."""
    module = name.rpartition(".")[0] or name
    leaf = module.rpartition(".")[2]
    if leaf in EMBEDDINGS or "embed" in leaf:
        return EMBEDDING
    if leaf in HEADS and module.count(".") <= 1:
        return HEAD
    return next((kind for kind, pattern in _KINDS if pattern.search(name)), OTHER)


def shard_map(checkpoint: Checkpoint) -> dict[str, tuple[Piece, ...]]:
    """By shard, its tensors by kind; shards and names in natural order."""
    held: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(checkpoint.tensors, key=natural):
        held[checkpoint.weight_map[name]][kind_of(name)].append(name)
    sizes = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    return {
        shard: tuple(
            Piece(kind, sum(sizes[name] for name in held[shard][kind]), tuple(held[shard][kind]))
            for kind in ALL
            if kind in held[shard]
        )
        for shard in sorted(held, key=natural)
    }
