"""The `__metadata__` of a shard that is written: of the shards that its tensors come from, joined."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, PlanError
from ..models.header_ties import entries_in


def joined_metadata(checkpoint: Checkpoint, names: Collection[str], shard: str, drop: Sequence[str]) -> dict[str, str]:
    """`__metadata__` of the shards that `names` came from, joined; `{"format": "pt"}` where there was none.

    Of ties it has those to its own tensors. Raises PlanError where shards disagree on a key that is not in `drop`.
    """
    ties, found = entries_in(checkpoint.metadata, checkpoint.tensors), False
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
