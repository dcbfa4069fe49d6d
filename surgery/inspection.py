"""Inspect: what is this checkpoint, or this adapter? Answered from headers and config alone."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .checkpoint import Checkpoint, open_any
from .errors import LayoutError, NotSupported
from .families import EMBEDDINGS, HEADS, is_tied
from .folder import folder_at
from .formats.peft import WEIGHTS as ADAPTER_WEIGHTS
from .formats.peft import Adapter
from .fused.detect import choices, detect, looks_fused
from .names import natural
from .tensor import Shape, Tensor


@dataclass(frozen=True, slots=True)
class Count:
    """So many tensors, elements and bytes."""

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Modules that an adapter can be put on, by last name: how many there are, and the shapes of their weights."""

    name: str
    modules: int
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `inspect` found. Empty fields mean that there is nothing of the kind."""

    path: str
    kind: str  # "checkpoint" or "adapter"
    model_type: str
    architectures: tuple[str, ...]
    total: Count
    dtypes: Mapping[str, Count]
    shards: Mapping[str, Count]
    ties: tuple[str, ...]
    fused: tuple[str, ...]
    targets: tuple[Target, ...]
    quantization: str
    adapter: Mapping[str, Any]
    files: tuple[str, ...]
    history: tuple[Mapping[str, Any], ...]
    notes: tuple[str, ...]


def inspect(path: str | os.PathLike[str]) -> Inspection:
    """What lies at `path`: a checkpoint or an adapter. Reads headers and small files."""
    found = open_any(path)
    return _inspect_adapter(found) if isinstance(found, Adapter) else inspect_checkpoint(found)


def inspect_checkpoint(checkpoint: Checkpoint) -> Inspection:
    """What an opened checkpoint is, whatever surgeries it has behind it."""
    config, tensors = checkpoint.config, checkpoint.tensors
    return Inspection(
        path=checkpoint.path,
        kind="checkpoint",
        model_type=str(config.get("model_type", "")),
        architectures=tuple(map(str, config.get("architectures") or ())),
        total=_count(tensors.values()),
        dtypes=_by(tensors, lambda name: tensors[name].dtype.name),
        shards=_by(tensors, lambda name: checkpoint.weight_map[name]),
        ties=_ties(checkpoint),
        fused=_fused(checkpoint),
        targets=_targets(tensors),
        quantization=_quantization(config),
        adapter={},
        files=tuple(sorted(checkpoint.files)),
        history=checkpoint.history,
        notes=checkpoint.notes,
    )


def _inspect_adapter(adapter: Adapter) -> Inspection:
    config, folder = adapter.config, folder_at(adapter.path)
    named = ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora", "bias", "target_modules", "modules_to_save", "rank_pattern")
    shown = {key: config[key] for key in (*named, "alpha_pattern", "base_model_name_or_path") if config.get(key)}
    shown |= {"modules": len(adapter.lora), "whole_tensors": len(adapter.whole)}
    parts = {f"{module}.weight": part for module, parts in adapter.lora.items() for part in parts.values()}
    return Inspection(
        path=adapter.path,
        kind="adapter",
        model_type="",
        architectures=(),
        total=_count(adapter.tensors.values()),
        dtypes=_by(adapter.tensors, lambda name: adapter.tensors[name].dtype.name),
        shards={ADAPTER_WEIGHTS: _count(adapter.tensors.values())},
        ties=(),
        fused=(),
        targets=_targets(parts),
        quantization="",
        adapter=shown,
        files=tuple(sorted(f for f in folder.names() if folder.has(f))) if folder else (),
        history=(),
        notes=(),
    )


def _count(tensors: Iterable[Tensor]) -> Count:
    number = parameters = nbytes = 0
    for tensor in tensors:
        size = tensor.size
        number, parameters, nbytes = number + 1, parameters + size, nbytes + size * tensor.dtype.bits // 8
    return Count(number, parameters, nbytes)


def _by(tensors: Mapping[str, Tensor], key: Callable[[str], str]) -> dict[str, Count]:
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in tensors.items():
        groups[key(name)].append(tensor)
    return {name: _count(groups[name]) for name in sorted(groups, key=natural)}


def _ties(checkpoint: Checkpoint) -> tuple[str, ...]:
    if not is_tied(checkpoint.config):
        return ()
    leaves = {n: n.rpartition(".")[0].rpartition(".")[2] for n in checkpoint.tensors if n.endswith(".weight")}
    heads = [n for n, leaf in leaves.items() if leaf in HEADS and n.count(".") <= 2]
    inputs = [n for n, leaf in leaves.items() if leaf in EMBEDDINGS]
    if not inputs:
        return ()
    stored = f"also stored: {', '.join(heads)}" if heads else "the head is not stored"
    return (f"{', '.join(inputs)} is the output head too ({stored})",)


def _fused(checkpoint: Checkpoint) -> tuple[str, ...]:
    try:
        sites = detect(checkpoint.config, checkpoint.tensors)
    except (LayoutError, NotSupported) as error:
        return (f"a fused family, but {error.what}",)
    found = Counter((site.row.fused, tuple(site.row.parts.values()), str(site.layout), site.why) for site in sites)
    known = [f"{n} × {fused} -> {', '.join(parts)}: {layout} ({why})" for (fused, parts, layout, why), n in found.items()]
    taken = {site.module for site in sites}
    return (*known, *_undetermined(checkpoint, [pair for pair in looks_fused(checkpoint.tensors) if pair[0] not in taken]))


def _undetermined(checkpoint: Checkpoint, looks: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each name that looks fused: what its layout could be."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for module, suffix in looks:
        alike[module.rpartition(".")[2]].append((module, suffix))
    return [
        f"{len(pairs)} modules such as {pairs[0][0]}: by their name, but in a layout that is not known"
        + (f": {could}" if (could := " or ".join(choices(checkpoint.config, checkpoint.tensors, *pairs[0]))) else "")
        for pairs in alike.values()
    ]


def _targets(tensors: Mapping[str, Tensor]) -> tuple[Target, ...]:
    shapes: dict[str, Counter[Shape]] = defaultdict(Counter)
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if kind == "weight" and len(tensor.shape) == 2:
            parts = module.split(".")
            last = next((i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit()), 0)
            shapes[".".join(parts[last:])][tensor.shape] += 1
    return tuple(Target(leaf, sum(c.values()), tuple(sorted(c))) for leaf, c in sorted(shapes.items()))


def _quantization(config: Mapping[str, Any]) -> str:
    said = config.get("quantization_config") or config.get("compression_config")
    return str(said.get("quant_method") or said.get("format") or "unnamed") if isinstance(said, Mapping) else ""
