"""Inspect: what is this checkpoint, or this adapter? Answered from headers and config alone."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ..adapters.consistency import contradictions, doubts
from ..adapters.experts import by_parameter
from ..adapters.methods.telling import described
from ..arguments import in_both
from ..checkpoint import Checkpoint, open_any
from ..errors import SurgeryError, printable
from ..files.adapters.opening import open_adapter
from ..files.folder import folder_at
from ..files.peft import WEIGHTS as ADAPTER_WEIGHTS
from ..files.peft import Adapter
from ..lazy.tensor import Shape, Tensor
from ..models.families import EMBEDDINGS, HEADS, is_tied
from ..models.header_ties import entries_in
from ..models.tasks import is_bare
from ..names import natural
from ..opened import takes_opened
from ..surgeries.merging.own_lora import own_adapter, own_names
from .collections import held_in
from .components_of_adapter import components
from .counted import Count, Target, count, targets_of
from .fused_modules import FusedModules, fused_in
from .quantised_weights import Quantization, quantization_in

# Of adapter_config.json, what says which modules have what.
SHOWN = (
    "peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "lora_bias", "bias", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "layer_replication", "target_parameters", "modules_to_save",
    "trainable_token_indices",
    "ensure_weight_tying", "rank_pattern", "alpha_pattern", "base_model_name_or_path",
)  # fmt: skip


PER_MODULE = ("r", "alpha", "lora_alpha", "rank_pattern", "alpha_pattern")  # which are counted by component
FACTORS = ("lora_A.weight", "lora_embedding_A", "lora_B.weight", "lora_embedding_B")


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found. Empty fields mean that there is nothing of the kind.

    `total.parameters` counts quantised weights as what they mean; `dtypes` and `shards`, what is stored.
    """

    path: str
    kind: str  # "checkpoint" or "adapter"
    model_type: str
    architectures: tuple[str, ...]
    total: Count
    dtypes: Mapping[str, Count]
    shards: Mapping[str, Count]
    ties: tuple[str, ...]
    fused: tuple[FusedModules, ...]
    targets: tuple[Target, ...]
    quantization: Quantization | None
    adapter: Mapping[str, Any]
    files: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]
    holds: tuple[str, ...] = ()  # what it is a collection of, or whose layout it has, a line each
    format: str = ""  # of its files; empty: safetensors

    def __repr__(self) -> str:
        kind, total = " ".join(filter(None, (self.model_type, self.kind))), self.total
        where = printable(self.path)
        return f"<Inspection of {where}: {printable(kind)}, {total.tensors} tensors, {total.parameters:,} parameters>"


@takes_opened
def inspect(path: str | os.PathLike[str], **said: Any) -> Inspection:
    """What lies at `path`: a checkpoint or an adapter. Reads headers and small files.

    What is `said` of an adapter whose file does not tell, such as `format`, is as for `open_adapter`.
    """
    given = any(value is not None for value in said.values())
    found = open_adapter(path, **said) if given else open_any(path)
    return _inspect_adapter(found) if isinstance(found, Adapter) else inspect_checkpoint(found)


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """What an opened checkpoint is, whatever surgeries it has behind it."""
    config, tensors, own = checkpoint.config, checkpoint.tensors, set(own_names(checkpoint))
    quantization, meant, unread = quantization_in(checkpoint)
    plain = {name: tensor for name, tensor in meant.tensors.items() if name not in own}
    fused, unclear = fused_in(meant)
    return Inspection(
        path=checkpoint.path,
        kind="checkpoint",
        model_type=str(config.get("model_type", "")),
        architectures=tuple(map(str, config.get("architectures") or ())),
        total=replace(count(tensors.values()), parameters=count(meant.tensors.values()).parameters),
        dtypes=_by(tensors, lambda name: tensors[name].dtype.name),
        shards=_by(tensors, lambda name: checkpoint.weight_map[name]),
        ties=_ties(checkpoint),
        fused=fused,
        targets=targets_of(
            {
                n.removesuffix(".weight"): t.shape
                for n, t in plain.items()
                if n.endswith(".weight") and len(t.shape) == 2
            }
        ),
        quantization=quantization,
        adapter=_own(checkpoint) if own else {},
        files=tuple(sorted(checkpoint.files)),
        history=checkpoint.history,
        notes=tuple(map(in_both, (*checkpoint.notes, *unclear, *unread))),
        holds=held_in(checkpoint),
        format=checkpoint.format,
    )


def _inspect_adapter(adapter: Adapter) -> Inspection:
    folder = folder_at(adapter.path)
    unread = (
        [f"weights lie beside the adapter, and a merge takes them by --with FILE only: {', '.join(adapter.unread)}"]
        if adapter.unread
        else []
    )
    return Inspection(
        path=adapter.path,
        kind="adapter",
        model_type="",
        architectures=(),
        total=count(adapter.tensors.values()),
        dtypes=_by(adapter.tensors, lambda name: adapter.tensors[name].dtype.name),
        shards={adapter.format.get("file", ADAPTER_WEIGHTS): count(adapter.tensors.values())},
        ties=(),
        fused=(),
        targets=targets_of(_adapted(adapter)),
        quantization=None,
        adapter=_described(adapter),
        files=tuple(sorted(f for f in folder.names() if folder.has(f))) if folder else (),
        history=(),
        notes=tuple(map(in_both, (*contradictions(adapter), *doubts(adapter), *adapter.notes, *unread))),
    )


def _own(checkpoint: Checkpoint) -> dict[str, Any]:
    """The LoRA that the checkpoint holds itself; why it makes no sense, where it makes none."""
    try:
        return {"adapter": "LoRA of its own, which surgery merge folds in", **_described(own_adapter(checkpoint)[1])}
    except SurgeryError as error:
        return {"adapter": f"LoRA tensors of its own, but {error.what}"}


def _described(adapter: Adapter) -> dict[str, Any]:
    """What its config says, and how much it holds."""
    config = adapter.config
    said = {key: config[key] for key in SHOWN if config.get(key, "") not in ([], {}, "")}
    shown = {key: value for key, value in said.items() if value is not None and value is not False}
    told = {key: adapter.format[key] for key in ("format", "why") if key in adapter.format}
    if told:
        shown.pop("target_modules", None)  # which are all that there are
    if adapter.format.get("key") == "image":
        told["components"] = components(adapter)
        shown = {key: value for key, value in {**described(adapter), **shown}.items() if key not in PER_MODULE}
    else:
        shown = described(adapter) | shown
    return told | shown | {"modules": len(adapter.lora), "whole_tensors": len(adapter.whole)}


def _adapted(adapter: Adapter) -> dict[str, Shape]:
    """The shape of what LoRA adds to each module, or to each expert's parameter: (out, in), of an embedding
    (vocabulary, dim).
    """
    with suppress(SurgeryError):  # the notes say why its parameters have no names
        adapter = by_parameter(adapter)
    found = dict[str, Shape]()
    for module, parts in adapter.lora.items():
        shapes = [parts[key].shape for key in FACTORS if key in parts]
        if len(shapes) == 2 and all(shapes):
            a, b = shapes
            found[module] = (*a[1:], b[0]) if "lora_embedding_A" in parts else (b[0], *a[1:])
    return found


def _by(tensors: Mapping[str, Tensor], key: Callable[[str], str]) -> dict[str, Count]:
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[key(name)].append(tensor)
    return {name: count(groups[name]) for name in sorted(groups, key=natural)}


def _ties(checkpoint: Checkpoint) -> tuple[str, ...]:
    named = entries_in(checkpoint.metadata, checkpoint.tensors)
    return (
        *_ties_of_class(checkpoint),
        *(f"{name} is {holder}, as the header of {shard} says" for (name, holder), shard in named.items()),
    )


def _ties_of_class(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not is_tied(checkpoint.config) or is_bare(checkpoint.config):
        return ()
    leaves = {n: n.rpartition(".")[0].rpartition(".")[2] for n in checkpoint.tensors if n.endswith(".weight")}
    heads = [n for n, leaf in leaves.items() if leaf in HEADS and n.count(".") <= 2]
    inputs = [n for n, leaf in leaves.items() if leaf in EMBEDDINGS]
    if not inputs:
        return ()
    stored = f"also stored: {', '.join(heads)}" if heads else "the head is not stored"
    return (f"{', '.join(inputs)} is the output head too ({stored})",)
