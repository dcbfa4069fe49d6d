"""What a file, or a set of files, of any format holds: names -> lazy tensors over stored bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..lazy.tensor import File, Stored, Tensor, stored

SHARD = "model.safetensors"  # where the tensors of a format would lie that has no shards of its own


@dataclass(frozen=True)
class Opened:
    """The weights of one checkpoint, as a format's reader finds them.

    `shards` says in which safetensors file each tensor would lie. `leaves` are the stored tensors by name, of which
    all are to reach an output; of those in `partly` not each element is. `own` are the paths in the folder that these
    weights lie in, or that belong to them: nothing of that is carried along.
    """

    what: str  # the format, in words; empty: safetensors
    files: tuple[File, ...]
    tensors: Mapping[str, Tensor]
    shards: Mapping[str, str]
    leaves: Mapping[str, Stored]
    own: frozenset[str]
    partly: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    stem: str = "model"
    index_metadata: Mapping[str, Any] = field(default_factory=dict)
    index_name: str = ""  # as it is, or would be, called; empty: by the stem
    index: bytes = b""  # the index file as it was opened
    metadata: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)  # `__metadata__` by shard
    made: Mapping[str, bytes] = field(default_factory=dict)  # files beside it, of what it says of the model

    @property
    def called_otherwise(self) -> frozenset[str]:
        """The names of the tensors, where those of the leaves are others."""
        return frozenset() if self.tensors is self.leaves else frozenset(self.tensors)


def leaves_of(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Stored], frozenset[str]]:
    """The stored bytes that each tensor is made of, by its name and their number, and those of which not all are
    used: a view with gaps is.
    """
    leaves, partly = dict[str, Stored](), set[str]()
    for name, tensor in tensors.items():
        mine = {f"{name}[{i}]": leaf for i, leaf in enumerate(stored(tensor))}
        leaves |= mine
        partly |= mine.keys() if sum(leaf.size for leaf in mine.values()) != tensor.size else set()
    return leaves, frozenset(partly)
