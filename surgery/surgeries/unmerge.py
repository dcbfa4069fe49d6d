"""Give a base back: byte for byte from the undo record of its merge, or approximately by subtraction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ..checkpoint import UNDO, Checkpoint
from ..errors import AdapterError, NotSupported, VerificationFailed, listed
from ..evaluation.read import sha256
from ..files.folder import folder_at
from ..files.history import merged_in
from ..files.peft import Adapter
from ..files.safetensors import header_alone
from ..lazy.dropped import both
from ..lazy.dtypes import F32
from ..lazy.tensor import File, Input, Sum, Tensor, Zeros, add, narrow
from ..planning.record import BaseRecord, read_base_record, read_shard_records
from ..step import Option, like, step
from .merging.merge import merge
from .subtractable import check_adds, check_of_adapters_alone

OF_MERGE_ALONE = ("again", "any_base", "tokenizer", "through", "trained_on", "reversible")
SAMPLED, ROWS = 32, 64  # tensors, about, and rows of each that are read for an estimate
SEEN = 1 << 18  # elements of each, at most


@step
def unmerge(checkpoint: Annotated[Checkpoint, Option("A checkpoint that surgery merged.", "MERGED")]) -> Checkpoint:
    """Restore the base of a merge that was made with `reversible`, byte for byte, each block checked.

    Each file is as it was, but for `.surgery/`.

    Raises VerificationFailed where the folder holds no record, or not what was merged; FormatError for a damaged
    record. What is restored is compared with its digests while it is written, block by block.
    """
    folder = folder_at(checkpoint.path)
    if folder is None:
        raise VerificationFailed("a record lies in a folder", where=[checkpoint.path], help="pass the merged folder")
    record = read_base_record(folder)
    tensors, used, sources = dict[str, Tensor](), set[str](), list[File]()
    for part in read_shard_records(folder, record.facts["shards"]):
        sources.append(part.file)
        for number, name in enumerate(part.recipes):
            tensors[name], from_written = part.restored(number, name, checkpoint.tensors)
            used |= {name} if from_written else set()
    weight_map, metadata = _layout(checkpoint, record, tensors)
    files = {path: _file(checkpoint, record, path, facts) for path, facts in record.files.items()}
    unused = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in used}
    step = {"surgery": "unmerge", "restored": len(tensors), "dropped": sorted(unused)}
    return replace(
        checkpoint,
        tensors=tensors,
        weight_map=weight_map,
        metadata=metadata,
        files=files,
        inputs=(*checkpoint.inputs, Input("record", folder.at(UNDO), tuple(sources), {})),
        stem=record.facts["stem"],
        index_name=record.facts["index_name"],
        dropped=both(checkpoint.dropped, unused),
        history=(*record.facts["history"], step),
        notes=(
            *record.facts["notes"],
            *_left(checkpoint, record),
            f"restored, and compared with their digests: {len(tensors)} tensors",
        ),
        headers=record.headers,
    )


def _layout(
    checkpoint: Checkpoint, record: BaseRecord, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, Mapping[str, str] | None]]:
    """(shard by tensor, metadata by shard) as the base had them; every tensor in its headers is one that the record
    restores.
    """
    headers = {shard: header_alone(raw, f"{checkpoint.path}/{UNDO}: {shard}") for shard, raw in record.headers.items()}
    called = {
        (shard, name): f"{_begin(checkpoint, shard)}{name}"
        for shard, header in headers.items()
        for name in header.entries
    }
    said = {called[s, name]: (e.dtype, e.shape) for s, header in headers.items() for name, e in header.entries.items()}
    if said != {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}:
        raise VerificationFailed(
            "the parts of the undo record do not belong together", where=[f"{checkpoint.path}/{UNDO}"]
        )
    weight_map = {name: shard for (shard, _), name in called.items()}
    return weight_map, {shard: header.metadata for shard, header in headers.items()}


def _begin(checkpoint: Checkpoint, shard: str) -> str:
    """What the names of a shard's tensors begin with, and do not in the file: the folder of a pipeline's component."""
    folder = shard.rpartition("/")[0]
    return f"{folder}/" if folder in checkpoint.parts else ""


def _file(checkpoint: Checkpoint, record: BaseRecord, path: str, facts: Mapping[str, Any]) -> File | bytes:
    """A file of the base: from the record, or the merged folder's where that is still the same."""
    if path in record.contents:
        return record.contents[path]
    found = checkpoint.files.get(path)
    where = [f"{checkpoint.path}/{path}"]
    if not isinstance(found, File):
        raise VerificationFailed(
            "a file of the base is not there any more", where=where, help="put it back from the base, or a copy"
        )
    if sha256(found) != facts["sha256"]:
        tip = f"put it back as it was: {facts['size']} bytes, sha256 {facts['sha256']}"
        raise VerificationFailed("a file of the base was changed since the merge", where=where, help=tip)
    return found


def _left(checkpoint: Checkpoint, record: BaseRecord) -> list[str]:
    """What the merged folder has besides the base's files: it does not come along."""
    more = sorted(path for path in checkpoint.files if path not in record.files)
    return [f"not the base's, and left out: {', '.join(more)}"] if more else []


@step
@like(merge, without=OF_MERGE_ALONE)
def unmerge_approximately(
    checkpoint: Annotated[Checkpoint, Option("A checkpoint into which adapters were merged.", "MERGED")],
    adapter: Annotated[Adapter | Sequence[Adapter], Option("What was merged.", "ADAPTER", ("adapters",))],
    weights: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
    **told: Any,
) -> Checkpoint:
    """Subtract adapters that were merged: the base, but for the weights that rounding changed for good.

    A note says how many that will be, estimated from rows of the tensors in question, which are read for it.
    `weights`, `scale` and what else was `told` to `merge` are those of the merge; weights that are not given are those
    of the history. Raises NotSupported where
    subtraction cannot bring the base back: DoRA scales its weights; modules to save, trained biases and trained
    tokens took the place of the base's own.
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    for one in adapters:
        if one.config.get("use_dora") or one.whole:
            what = "DoRA scaled the weights" if one.config.get("use_dora") else "tensors of the base were replaced"
            tip = "take the base again; merges made with --reversible can be undone exactly"
            raise NotSupported(
                f"{what}, which no subtraction undoes", where=[one.path, *listed(sorted(one.whole))], help=tip
            )
    check_adds(adapters)
    trust = _check_merged(checkpoint, adapters)
    factors = [-scale * weight for weight in weights or _as_merged(checkpoint, adapters)]
    undone = merge(checkpoint, adapters, factors, **told, again=True)
    check_of_adapters_alone(undone, checkpoint, adapters)
    step = {"surgery": "unmerge", "approximate": True, "adapters": [one.digest for one in adapters]}
    return replace(undone, history=(*checkpoint.history, step), notes=(*undone.notes, *trust, _estimate(undone)))


def _as_merged(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> list[float]:
    """The weight with which each was merged, by the history; 1 where that does not say."""
    said = {one.get("digest"): one.get("weight", 1.0) for one in merged_in(checkpoint.history)}
    return [said.get(one.digest, 1.0) for one in adapters]


def _check_merged(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> list[str]:
    """Raise AdapterError for an adapter that is not among those which the manifest names; a note where it names
    none.
    """
    merged = {one.get("digest") for one in merged_in(checkpoint.history)}
    if not merged:
        return ["nothing here says which adapters were merged: that these were is taken on trust"]
    if strange := [one.path for one in adapters if one.digest not in merged]:
        tip = "name the adapters of the merge, as they were then; .surgery/manifest.json has their digests"
        raise AdapterError(
            "the adapter is not one that was merged into this checkpoint", where=[*strange, checkpoint.path], help=tip
        )
    return []


def _estimate(undone: Checkpoint) -> str:
    """How many weights will not be the base's, from merging and subtracting once more on some rows of some tensors."""
    sums = {name: tensor for name, tensor in undone.tensors.items() if isinstance(tensor, Sum) and tensor.deltas}
    chosen = list(sums.values())[:: max(1, len(sums) // SAMPLED)]
    shares = [_share(sampled(tensor)) for tensor in chosen]
    total = sum(tensor.size for tensor in sums.values())
    share = sum(shares) / len(shares) if shares else 0.0
    return (
        f"approximate: about {share:.2%} of the {total} weights in {len(sums)} tensors will not be the base's, mostly"
        " by the last bit"
    )


def sampled(tensor: Sum) -> Sum:
    """A corner of a sum, of at most `ROWS` rows and, where columns can be taken of it, `SEEN` elements."""
    wanted = [min(ROWS, tensor.shape[0]), *tensor.shape[1:]]
    for axis in range(len(wanted)):
        wanted[axis] = max(1, min(wanted[axis], SEEN * wanted[axis] // max(1, math.prod(wanted))))
    found = tensor
    for axis, length in enumerate(wanted):
        less = narrow(found, axis, 0, length)
        found = less if isinstance(less, Sum) else found
    return found


def _share(undone: Tensor) -> float:
    """The share of weights that do not survive a merge and a subtraction: of weights like these, since the base's
    are not there.
    """
    from ..evaluation.evaluate import load

    assert isinstance(undone, Sum)
    weights, subtracted = load(undone.base), load(add(Zeros(F32, undone.shape), undone.deltas))
    merged = (weights.float() - subtracted).to(weights.dtype)
    back = (merged.float() + subtracted).to(weights.dtype)
    return float((back != weights).float().mean())


@step
def reversible(
    merged: Checkpoint, base: Annotated[Checkpoint, Option("What it was made of, as it was opened.", "BASE")]
) -> Checkpoint:
    """Write an undo record of the base beside the merged shards, so that `unmerge` gives the base back.

    Raises PlanError, when it is planned, unless `base` is as it was opened.
    """
    return replace(merged, before=base)
