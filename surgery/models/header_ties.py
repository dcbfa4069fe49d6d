"""Ties that a header names: `safetensors.torch.save_model` stores one of a tensor's names, and writes each other one
with it into `__metadata__`, `{"lm_head.weight": "embed_tokens.weight"}`. No loader reads that: the module that loads
the file has the tie.

An entry is a tie where its value is the name of a tensor that is stored, and its key is stored nowhere. All else
says other things.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from ..errors import FormatError

Metadata = Mapping[str, Mapping[str, str] | None]  # `__metadata__` by shard


def entries_in(metadata: Metadata, stored: Collection[str]) -> dict[tuple[str, str], str]:
    """The entries that are ties, (name, whose tensor it is), in the order of their names within a shard, each with
    that shard.
    """
    found = dict[tuple[str, str], str]()
    for shard, entries in metadata.items():
        for pair in sorted((entries or {}).items()):
            if _is_tie(*pair, stored):
                found.setdefault(pair, shard)
    return found


def header_ties(metadata: Metadata, stored: Collection[str]) -> dict[str, str]:
    """Name that is not stored -> the one that its tensor is stored under. Raises FormatError where headers name two
    for one.
    """
    found, shards = dict[str, str](), dict[str, str]()
    for (name, holder), shard in entries_in(metadata, stored).items():
        if found.setdefault(name, holder) != holder:
            where = [f"{shards[name]}: {name} is {found[name]}", f"{shard}: {name} is {holder}"]
            tip = f"store {name} itself, or leave both entries out: surgery reshard with --drop-metadata {name}"
            raise FormatError("headers tie one name to two tensors", where=where, help=tip)
        shards.setdefault(name, shard)
    return found


def header_families(metadata: Metadata, stored: Collection[str], taken: Collection[str] = ()) -> list[tuple[str, ...]]:
    """The names of each tensor that headers tie: the stored one first. Those in `taken` are left out."""
    found = dict[str, list[str]]()
    for name, holder in header_ties(metadata, stored).items():
        if name not in taken:
            found.setdefault(holder, [holder]).append(name)
    return [tuple(names) for names in found.values()]


def _is_tie(key: str, value: str, stored: Collection[str]) -> bool:
    """`format` is the loader's own word, and a number is one of a ParameterList's names only where the key is one as
    well.
    """
    return value in stored and key not in stored and key != "format" and (not value.isdigit() or key.isdigit())
