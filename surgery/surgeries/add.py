"""Tensors of another checkpoint, put beside those that are there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Annotated

from ..checkpoint import Checkpoint
from ..errors import NotSupported, PlanError, listed, series
from ..lazy.dropped import both
from ..lazy.dtypes import Dtype, Kind
from ..lazy.tensor import Input, Tensor
from ..models.header_ties import header_ties
from ..models.tying import tied_families
from ..names import natural
from ..quantization.codes import codes_in
from ..step import Option, step
from .rename import keep, rename


@step
def add(
    checkpoint: Checkpoint,
    other: Annotated[Checkpoint, Option("The checkpoint whose tensors are added.", "OTHER")],
    *,
    prefix: Annotated[str, Option("What is put before each name of OTHER, such as vision_tower.", "TEXT")] = "",
    pattern: Annotated[
        str | None, Option("Only the tensors of OTHER whose whole name there matches; the rest is dropped.", "REGEX")
    ] = None,
) -> Checkpoint:
    r"""Add tensors of another checkpoint, under a prefix; config.json and what else lies beside stay MODEL's.

        add(language_model, clip, prefix="vision_tower.", pattern=r"vision_model\..*")

    Each shard of the other one stays a shard, behind those that are there; ties that its headers name stay true.
    Raises PlanError where names collide, or config.json ties an added one to one that is there; NothingMatched where
    the pattern leaves nothing; NotSupported for codes of quantised weights, of which config.json could not say what
    they mean, and for pipelines.
    """
    _check_alone(checkpoint, other)
    taken = keep(other, pattern) if pattern is not None else other
    _check_plain(checkpoint, taken)
    added = rename(taken, [("^", prefix.replace("\\", r"\\"))]) if prefix else taken
    _check_new(checkpoint, added, prefix)
    made = _beside(checkpoint, added)
    given = {"prefix": prefix or None, "pattern": pattern}
    said = {key: value for key, value in given.items() if value is not None}
    name, notes = os.path.basename(other.path.rstrip("/")), _notes(checkpoint, added)
    return made.with_step(
        {"surgery": "add", "other": name, "tensors": len(added.tensors), **said},
        inputs=(*checkpoint.inputs, *(_input(source) for source in other.inputs)),
        dropped=both(checkpoint.dropped, _dropped(checkpoint, taken, name)),
        notes=(*checkpoint.notes, *(f"{name}: {note}" for note in taken.notes), *notes),
    )


def _check_alone(*both: Checkpoint) -> None:
    """Raise NotSupported for a pipeline: a tensor belongs to one of its components."""
    for one in both:
        if one.parts:
            tip = f"pass one of its components with --component: {series(list(one.parts))}"
            raise NotSupported("a pipeline is several checkpoints", where=[one.path], help=tip)


def _check_plain(checkpoint: Checkpoint, taken: Checkpoint) -> None:
    """Raise NotSupported where config.json could not say which of the tensors are codes, and which are not."""
    tip = "write what codes mean in 16 bits first: surgery dequantize MODEL -o OUT"
    if codes := codes_in(taken):
        rows = listed(sorted(codes, key=natural))
        what = "the added tensors are codes, and config.json would not say what they mean"
        raise NotSupported(what, where=[taken.path, *rows], help=tip)
    matrices = [name for name, tensor in taken.tensors.items() if len(tensor.shape) > 1]
    if matrices and codes_in(checkpoint):
        what = "the model is quantised, and config.json would say that of the added weights too"
        raise NotSupported(what, where=[checkpoint.path, *listed(sorted(matrices, key=natural))], help=tip)


def _check_new(checkpoint: Checkpoint, added: Checkpoint, prefix: str) -> None:
    """Raise PlanError for names that are there, stored or tied by a header, and for those that config.json ties."""
    there, new = ({*one.tensors, *header_ties(one.metadata, one.tensors)} for one in (checkpoint, added))
    if both := sorted(there & new, key=natural):
        rows = [f"{name}: {name.removeprefix(prefix)} of {added.path}" for name in both]
        tip = "put another --prefix before the names of the other one, or take some of it with --pattern"
        raise PlanError(f"{len(both)} names are there already", where=[checkpoint.path, *listed(rows)], help=tip)
    tied = {name: names[0] for names in tied_families(checkpoint.config, checkpoint.tensors) for name in names}
    if found := sorted(new & tied.keys(), key=natural):
        rows = [f"{name} is tied to {tied[name]}" for name in found]
        tip = "store it apart first: surgery untie MODEL -o OUT"
        raise PlanError(
            "config.json ties what would be added to what is there", where=[checkpoint.path, *rows], help=tip
        )


def _beside(checkpoint: Checkpoint, added: Checkpoint) -> Checkpoint:
    """The checkpoint with the tensors, and with the shards, of both: numbered anew, in their order."""
    shards = [(one, shard) for one in (checkpoint, added) for shard in _shards(one)]
    called = {
        (id(one), shard): f"{checkpoint.stem}-{i:05}-of-{len(shards):05}.safetensors"
        for i, (one, shard) in enumerate(shards, 1)
    }
    both = (checkpoint, added)
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **added.tensors},
        weight_map={name: called[id(one), shard] for one in both for name, shard in one.weight_map.items()},
        metadata={called[id(one), shard]: one.metadata.get(shard) for one, shard in shards},
        files={path: file for path, file in checkpoint.files.items() if path != checkpoint.index_name},
        headers={},
        scattered=checkpoint.scattered or added.scattered,
    )


def _shards(checkpoint: Checkpoint) -> list[str]:
    return sorted({checkpoint.weight_map[name] for name in checkpoint.tensors}, key=natural)


def _input(source: Input) -> Input:
    """An input of the other checkpoint: not the one that all is counted from."""
    return replace(source, role="added") if source.role == "base" else source


def _dropped(checkpoint: Checkpoint, taken: Checkpoint, name: str) -> Mapping[str, Tensor]:
    """What of the other one is not taken, by its name there; one that the checkpoint has too says whose it is."""
    known: Collection[str] = {*checkpoint.tensors, *checkpoint.dropped}
    return {f"{n} of {name}" if n in known else n: tensor for n, tensor in taken.dropped.items()}


def _notes(checkpoint: Checkpoint, added: Checkpoint) -> list[str]:
    """What a user should know."""
    names = series(listed(sorted(added.tensors, key=natural), 2))
    notes = [
        f"{len(added.tensors)} tensors are added, such as {names}; config.json and the other files are as they were,"
        " and say nothing of them"
    ]
    usual, new = _dtype(checkpoint), _dtype(added)
    if usual and new and usual != new:
        notes.append(f"most of what is added is {new}, and most of what was there {usual}: surgery cast makes them one")
    return notes


def _dtype(checkpoint: Checkpoint) -> Dtype | None:
    """The floating dtype that most of its weights have."""
    sizes = Counter[Dtype]()
    for tensor in checkpoint.tensors.values():
        if tensor.dtype.kind is Kind.FLOAT:
            sizes[tensor.dtype] += tensor.size
    return max(sizes, key=lambda one: sizes[one], default=None)
