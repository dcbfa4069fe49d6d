"""Tied tensors: one in the file, under several names in the model.

While adapters are merged, each has a name of its own (`widened`): what an adapter does to one of them is then what it does
to that one alone, as in the live model. Afterwards those that are still equal are one again (`narrowed`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import NotSupported
from ...lazy.tensor import substitute
from ...models.families import ties


@dataclass(frozen=True, slots=True)
class Group:
    """Names of one tensor: that of the input embedding first; `holder` is the one under which the base stores it."""

    names: tuple[str, ...]
    holder: str


def groups_of(checkpoint: Checkpoint) -> tuple[Group, ...]:
    """The tensors that the model ties, as far as the base does. Reads two that are both stored, to see whether they are equal."""
    from ...evaluation.compare import same

    known, found = ties(checkpoint.config), list[Group]()
    for source in dict.fromkeys(known.others.values()) if known else ():
        names = (source, *(name for name, to in known.others.items() if to == source)) if known else ()
        stored = [name for name in names if name in checkpoint.tensors]
        if not stored:
            continue
        holder, base = stored[0], checkpoint.tensors[stored[0]]
        apart = {name for name in stored if not same(base, checkpoint.tensors[name])}
        found.append(Group(tuple(name for name in names if name not in apart), holder))
    return tuple(group for group in found if len(group.names) > 1)


def widened(checkpoint: Checkpoint, groups: tuple[Group, ...]) -> Checkpoint:
    """The checkpoint with each tied tensor under its own name, in the shard of the stored one."""
    missing = {name: group.holder for group in groups for name in group.names if name not in checkpoint.tensors}
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **{name: checkpoint.tensors[holder] for name, holder in missing.items()}},
        weight_map={**checkpoint.weight_map, **{name: checkpoint.weight_map[holder] for name, holder in missing.items()}},
    )


def narrowed(checkpoint: Checkpoint, before: Checkpoint, groups: tuple[Group, ...], tied: str) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint without the tied tensors that are still equal, and what config.json has to say of those that are not.

    `tied` is "untie", or "error": then NotSupported where tensors have come to differ.
    """
    known, tensors = ties(before.config), dict(checkpoint.tensors)
    edits, notes = dict[str, Any](), list[str]()
    for group in groups:
        base = before.tensors[group.holder]
        now = {name: substitute(tensors[name], before.tensors.get(name, base), base) for name in group.names}
        for name in group.names:
            if name not in before.tensors and now[name] == now[group.holder]:
                del tensors[name]
        apart = [name for name in group.names if name in tensors]
        if all(now[name] == now[group.holder] for name in apart):
            continue
        if tied == "error":
            raise NotSupported(
                "the adapter changes one of two tied tensors, which would make them differ",
                where=[*apart, "config.json: tie_word_embeddings is true, or the model type's default"],
                help="without --tied error, each is stored under its own name",
            )
        edits |= {"tie_word_embeddings": False} if known and known.said else {}
        how = "config.json says so" if edits else "config.json stays, since its flag means more in this class: transformers 5 loads both"
        notes.append(f"the adapter makes tied tensors differ: {', '.join(apart)} are stored apart; {how}")
    weight_map = {name: shard for name, shard in checkpoint.weight_map.items() if name in tensors}
    mine = {name for group in groups for name in group.names} - before.tensors.keys()
    replaced = {name: tensor for name, tensor in checkpoint.replaced.items() if name not in mine}
    return replace(checkpoint, tensors=tensors, weight_map=weight_map, replaced=replaced, notes=(*checkpoint.notes, *notes)), edits
