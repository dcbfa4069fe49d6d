"""What headers tie, through surgeries: a name that is not stored is renamed, split and fused as if it were, and
headers stay true.

While a surgery works, each such name has a tensor of its own that tells whose it is (`parted`); afterwards what is
still that of another name is not stored, and the header of that one's shard says so (`along`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from ..checkpoint import Checkpoint
from ..errors import listed
from ..lazy.tensor import Tensor, stored, substitute
from ..models.header_ties import entries_in, header_ties

_MARK = "\0"  # no path has it: what is before it is the name that a copy was made for


def along(checkpoint: Checkpoint, change: Callable[[Checkpoint], Checkpoint]) -> Checkpoint:
    """The checkpoint after `change`, which reads no data, of the names too that only headers name."""
    ties = header_ties(checkpoint.metadata, checkpoint.tensors)
    return _joined(change(parted(checkpoint)), ties) if ties else change(checkpoint)


def parted(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with a tensor, which cannot be read, for each name that headers tie to a stored one; the
    headers say nothing more.
    """
    ties = header_ties(checkpoint.metadata, checkpoint.tensors)
    more = {name: _marked(checkpoint.tensors[holder], name) for name, holder in ties.items()}
    return retied(
        replace(
            checkpoint,
            tensors={**checkpoint.tensors, **more},
            weight_map={
                **checkpoint.weight_map,
                **{name: checkpoint.weight_map[holder] for name, holder in ties.items()},
            },
        ),
        checkpoint,
        {},
    )


def retied(checkpoint: Checkpoint, before: Checkpoint, ties: Mapping[str, str]) -> Checkpoint:
    """The checkpoint whose headers have these ties, each in the shard of the tensor, instead of those that `before`
    had.
    """
    old = entries_in(before.metadata, before.tensors)
    metadata = {
        shard: {k: v for k, v in (said or {}).items() if (k, v) not in old} or (None if said else said)
        for shard, said in checkpoint.metadata.items()
    }
    for name, holder in ties.items():
        shard = checkpoint.weight_map[holder]
        metadata[shard] = {**(metadata.get(shard) or {}), name: holder}
    return replace(checkpoint, metadata=metadata)


def one_each(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of names with lazy tensors, those that have the tensor of an earlier one, and that one."""
    first = dict[Tensor, str]()
    for name, tensor in tensors.items():
        first.setdefault(tensor, name)
    return {name: first[tensor] for name, tensor in tensors.items() if first[tensor] != name}


def _joined(made: Checkpoint, ties: Mapping[str, str]) -> Checkpoint:
    """What was made of a parted checkpoint: what is still another's is tied to that, the rest is stored."""
    copies = {name: _unmarked(tensor) for name, tensor in made.tensors.items() if _marks(tensor)}
    own = {name: tensor for name, tensor in made.tensors.items() if name not in copies}
    held = one_each({**own, **copies})
    held = {name: holder for name, holder in held.items() if name in copies}
    held = _within_shards(held, own, made.weight_map)
    tensors = {name: copies.get(name, tensor) for name, tensor in made.tensors.items() if name not in held}
    there = {name for tensor in made.tensors.values() for name in _marks(tensor)}
    alone = [name for name in copies if name in tensors]
    gone = [f"{name} to {holder}" for name, holder in ties.items() if name not in there]
    notes = [
        *(
            [
                "stored now, since what the header tied it to is not there any more as it was:"
                f" {', '.join(listed(alone))}"
            ]
            if alone
            else []
        ),
        *([f"gone from the header with the name: the tie of {', '.join(listed(gone))}"] if gone else []),
    ]
    narrow = replace(
        made,
        tensors=tensors,
        weight_map={name: shard for name, shard in made.weight_map.items() if name in tensors},
        dropped={name: tensor for name, tensor in made.dropped.items() if not _marks(tensor)},
        replaced={name: tensor for name, tensor in made.replaced.items() if not _marks(tensor)},
        notes=(*made.notes, *notes),
    )
    return retied(narrow, made, held)


def _within_shards(held: Mapping[str, str], own: Mapping[str, Tensor], shards: Mapping[str, str]) -> dict[str, str]:
    """`held`, where of several stored tensors that are one the holder is the one of the shard in which the name is."""
    there = {(own[name], shards[name]): name for name in reversed([*own])} if held else {}
    return {
        name: there.get((own[holder], shards[name]), holder) if holder in own else holder
        for name, holder in held.items()
    }


def _marked(tensor: Tensor, name: str) -> Tensor:
    for leaf in dict.fromkeys(stored(tensor)):
        tensor = substitute(tensor, leaf, replace(leaf, file=replace(leaf.file, path=f"{name}{_MARK}{leaf.file.path}")))
    return tensor


def _unmarked(tensor: Tensor) -> Tensor:
    for leaf in dict.fromkeys(stored(tensor)):
        if _MARK in leaf.file.path:
            tensor = substitute(
                tensor, leaf, replace(leaf, file=replace(leaf.file, path=leaf.file.path.partition(_MARK)[2]))
            )
    return tensor


def _marks(tensor: Tensor) -> list[str]:
    return [leaf.file.path.partition(_MARK)[0] for leaf in stored(tensor) if _MARK in leaf.file.path]
