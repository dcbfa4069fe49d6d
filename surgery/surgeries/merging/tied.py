"""Tied tensors: one in the file, under several names in the model.

While adapters are merged, each has a name of its own (`widened`): what an adapter does to one of them is then what
it does to that one alone, as in the live model. Afterwards those that are still equal are one again (`narrowed`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import NotSupported
from ...lazy.tensor import substitute
from ...models.families import ties, untied
from ...models.header_ties import header_families, header_ties
from ...models.tying import holder_of, input_embedding, tied_families, to_store
from ..header_ties import one_each, retied

# Why tied tensors were taken for tied, and what is said of those that differ now.
_SAID = "config.json: tie_word_embeddings is true, or the model type's default"
_WRITTEN = "config.json says so"
_STAYS = "config.json stays, since its flag means more in this class: transformers 5 loads both"
_NAMED = "the header says no more that they are one: load them into a module that does not tie them"


@dataclass(frozen=True, slots=True)
class Group:
    """Names that the class ties, the source first, then in the order in which one is looked for that is stored.

    `holder`: under which the base stores what is one tensor in it. `apart`: those that are others in this base,
    which PEFT takes for tied all the same where it sees to ties itself, if the `embedding`, the input embedding, is
    one with the source. `named`: it is the header alone that ties them, to the holder.
    """

    family: tuple[str, ...]
    holder: str
    embedding: str = ""
    apart: tuple[str, ...] = ()
    named: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Those that are one tensor in the base."""
        return tuple(name for name in self.family if name not in self.apart)

    @property
    def kept(self) -> tuple[str, ...]:
        """Those that PEFT keeps the same where it is told to, and whose trained tokens it shares."""
        return self.family if self.embedding else ()


def groups_of(checkpoint: Checkpoint) -> tuple[Group, ...]:
    """The tensors that the model ties, as far as the base does. Reads two that are both stored, to see whether they
    are equal.
    """
    from ...evaluation.compare import same

    tensors, found = checkpoint.tensors, list[Group]()
    first = input_embedding(checkpoint.config, tensors)
    for family in tied_families(checkpoint.config, tensors):
        holder = holder_of(family, tensors)
        apart = tuple(name for name in family if name in tensors and not same(tensors[holder], tensors[name]))
        embedding = first or family[0]
        reached = embedding in family and embedding not in apart and embedding.endswith(".weight")
        found.append(Group(family, holder, embedding if reached else "", apart))
    named = header_families(checkpoint.metadata, tensors, {name for group in found for name in group.family})
    return (*found, *(Group(names, names[0], named=True) for names in named))


def widened(checkpoint: Checkpoint, groups: tuple[Group, ...]) -> Checkpoint:
    """The checkpoint with each tied tensor under its own name, in the shard of the stored one."""
    missing = {name: group.holder for group in groups for name in group.names if name not in checkpoint.tensors}
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **{name: checkpoint.tensors[holder] for name, holder in missing.items()}},
        weight_map={
            **checkpoint.weight_map,
            **{name: checkpoint.weight_map[holder] for name, holder in missing.items()},
        },
    )


def narrowed(
    checkpoint: Checkpoint, before: Checkpoint, groups: tuple[Group, ...], tied: str
) -> tuple[Checkpoint, dict[str, Any]]:
    """The checkpoint without the tied tensors that loading makes of the others, and what config.json has to say of
    those that differ.

    `tied` is "untie", or "error": then NotSupported where tensors have come to differ.
    """
    known, tensors = ties(before.config), dict(checkpoint.tensors)
    edits, notes, held = dict[str, Any](), list[str](), header_ties(before.metadata, before.tensors)
    for group in groups:
        base = before.tensors[group.holder]
        now = {name: substitute(tensors[name], before.tensors.get(name, base), base) for name in group.names}
        now |= {name: tensors[name] for name in group.apart}
        if group.named:
            held |= one_each(now)
            stay = {name for name in group.names if name == group.holder or name not in one_each(now)}
        else:
            stay = to_store(group.family, now, before.tensors)
        for name in group.names:
            if name not in stay:
                del tensors[name]
        apart = [name for name in group.names if name in tensors]
        if all(now[name] == now[group.holder] for name in apart):
            continue
        if tied == "error":
            raise NotSupported(
                "the adapter changes one of two tied tensors, which would make them differ",
                where=[*apart, f"{before.weight_map[group.holder]}: __metadata__ ties them" if group.named else _SAID],
                help="without --tied error, each is stored under its own name",
            )
        said = bool(known and known.said and not group.named and all(name in tensors for name in group.family))
        edits |= untied(before.config) if said else {}
        how = _NAMED if group.named else _WRITTEN if said else _STAYS
        notes.append(f"the adapter makes tied tensors differ: {', '.join(apart)} are stored apart; {how}")
    weight_map = {name: shard for name, shard in checkpoint.weight_map.items() if name in tensors}
    mine = {name for group in groups for name in group.names} - before.tensors.keys()
    replaced = {name: tensor for name, tensor in checkpoint.replaced.items() if name not in mine}
    made = replace(
        checkpoint, tensors=tensors, weight_map=weight_map, replaced=replaced, notes=(*checkpoint.notes, *notes)
    )
    return retied(made, before, {name: holder for name, holder in held.items() if name not in tensors}), edits
