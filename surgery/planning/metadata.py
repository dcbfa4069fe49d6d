"""The `__metadata__` of a shard that is written: of the shards that its tensors come from, joined."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, PlanError
from ..models.header_ties import entries_in

Ties = Mapping[tuple[str, str], str]


def ties_in(checkpoint: Checkpoint) -> Ties:
    """The entries of all headers that are ties, each with its shard."""
    return entries_in(checkpoint.metadata, checkpoint.tensors)


def joined_metadata(
    checkpoint: Checkpoint, names: Collection[str], shard: str, drop: Sequence[str], ties: Ties
) -> dict[str, str]:
    """`__metadata__` of the shards that `names` came from, joined; `{"format": "pt"}` where there was none.

    Of the `ties` in them it has those to its own tensors. Raises PlanError where shards disagree on a key that is not
    in `drop`.
    """
    found = False
    said = list[tuple[str, str, str]]()
    for source in dict.fromkeys(checkpoint.weight_map[n] for n in names):
        metadata = checkpoint.metadata.get(source)
        others = [pair for pair in (metadata or {}).items() if pair not in ties]
        found |= metadata is not None and bool(others or not metadata)
        said += [(*pair, source) for pair in others]
    here = set(names)
    kept = [(*pair, source) for pair, source in ties.items() if pair[1] in here]
    joined: dict[str, str] = {}
    for key, value, source in (*said, *kept):
        if key not in drop and joined.setdefault(key, value) != value:
            raise PlanError(
                f"shards that are to be joined disagree on the metadata `{key}`",
                where=[shard, f"{joined[key]!r} against {value!r} in {source}"],
                help=f"leave it out with --drop-metadata {key}",
            )
    return joined if found or kept else {"format": "pt"}


def check_metadata(checkpoint: Checkpoint, drop: Sequence[str]) -> None:
    """Raise NothingMatched for a key to leave out that no shard has."""
    known = sorted({key for metadata in checkpoint.metadata.values() for key in metadata or {}})
    unknown = [key for key in drop if key not in known]
    if unknown:
        raise NothingMatched(
            f"no shard has the metadata {', '.join(unknown)}",
            where=[checkpoint.path],
            help=f"they have {', '.join(known) or 'none'}",
        )
