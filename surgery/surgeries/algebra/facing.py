"""Two checkpoints of one model, tensor beside tensor, under the names that its class has in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, SurgeryError, listed, series
from ...evaluation.read import same_content
from ...files.tokenizer_files import OF_TOKENIZERS
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import File, Tensor
from ...models.families import BUFFERS, CAUSAL_MASKS
from ...models.names_v5 import in_memory, renames_of
from ...names import is_called, natural
from ...quantization.settle import decoded
from ..injecting.modules import Module, tied, told
from ..injecting.parameters import EXPERTS, Parameter, stacks
from ..merging.quantised import read_quantised
from ..split import fuse_at, split_in

# What config.json may say otherwise without another computation.
LOOSE = frozenset("_name_or_path transformers_version dtype torch_dtype use_cache quantization_config".split())


@dataclass(frozen=True)
class Facing:
    """`base` and `tuned`; by the base's names, `tensors` are what both have: (the base's, the tuned one's).

    `shared` are the base's names of tensors that it stores once for several, with the others' names.
    """

    base: Checkpoint
    tuned: Checkpoint
    tensors: Mapping[str, tuple[Tensor, Tensor]]
    modules: Mapping[str, Module]
    weights: Mapping[str, str]  # modules by name in memory -> the base's name of their own weight
    parameters: Mapping[str, tuple[str, Parameter, bool]]  # of all experts of a layer: as `stacks` gives them
    memory: Mapping[str, str]  # the base's names -> names in memory
    shared: Mapping[str, tuple[str, ...]]
    files: Mapping[str, File | bytes]
    notes: tuple[str, ...]

    def pair(self, name: str) -> tuple[Tensor, Tensor]:
        """The base's tensor, and the tuned one's."""
        return self.tensors[name]

    def fits(self, name: str) -> bool:
        """Whether both are numbers, of one shape."""
        if name not in self.tensors:
            return False
        base, tuned = self.tensors[name]
        return base.shape == tuned.shape and all(side.dtype in ARITHMETIC for side in (base, tuned))


def faced(base: Checkpoint, tuned: Checkpoint) -> Facing:
    """The two, as what their codes mean. Raises AdapterError for models of two types, and for tensors that only one
    has.
    """
    kinds = [side.config.get("model_type") for side in (base, tuned)]
    if all(kinds) and kinds[0] != kinds[1]:
        rows = [f"{side.path}: model type {kind}" for side, kind in zip((base, tuned), kinds, strict=True)]
        tip = "an adapter is for a model of the type that it was trained on"
        raise AdapterError("the two checkpoints are models of different types", where=rows, help=tip)
    base, tuned = (_as_in_memory(decoded(side, read_quantised(side))) for side in (base, tuned))
    ours, theirs = _named(base), _named(tuned)
    _check_both(base, tuned, ours, theirs)
    memory, ties, others = {name: inside for inside, name in ours.items()}, tied(base), tied(tuned)
    pairs = {
        name: (_value(base, name, ties), _value(tuned, theirs[inside], others))
        for name, inside in memory.items()
        if inside in theirs and (name in base.tensors or theirs[inside] in tuned.tensors)
    }
    together: dict[str, tuple[str, ...]] = {}
    for name, holder in ties.items():
        if name in memory and name not in pairs:
            together[holder] = (*together.get(holder, ()), name)
    modules = told(base)
    weights = {name: ours[f"{name}.weight"] for name in modules if ours.get(f"{name}.weight") in pairs}
    parameters = {name: one for name, one in _stacks(base).items() if one[0] in pairs}
    files, notes = _files(base, tuned), _notes(base, tuned)
    return Facing(base, tuned, pairs, modules, weights, parameters, memory, together, files, notes)


def _as_in_memory(side: Checkpoint) -> Checkpoint:
    """The checkpoint with experts in the stacks that its class holds, where the files have them one by one."""
    try:
        sites = [site for site in split_in(side, EXPERTS) if site.row.asked]
    except SurgeryError:  # a layout that is not known: they are what they are
        return side
    return fuse_at(side, sites) if sites else side


def _stacks(base: Checkpoint) -> Mapping[str, tuple[str, Parameter, bool]]:
    try:
        return stacks(base)
    except SurgeryError:
        return {}


def _named(side: Checkpoint) -> dict[str, str]:
    """Names in memory -> names in the files, tied ones that are not stored too."""
    renames = renames_of(side.config)
    return {in_memory(name, renames): name for name in (*side.tensors, *tied(side))}


def _is_made(name: str, side: Checkpoint) -> bool:
    """Whether the class makes the tensor itself, where it is not stored: a buffer, or a mask."""
    mask = CAUSAL_MASKS.get(str(side.config.get("model_type")))
    return name.rpartition(".")[2] in BUFFERS or (mask is not None and is_called(name, [mask]))


def _value(side: Checkpoint, name: str, ties: Mapping[str, str]) -> Tensor:
    return side.tensors[ties.get(name, name)]


def _check_both(base: Checkpoint, tuned: Checkpoint, ours: Mapping[str, str], theirs: Mapping[str, str]) -> None:
    alone = {name for name in ours.keys() ^ theirs.keys() if not _is_made(name, base)}
    rows = [f"{base.path}: {ours[name]}" for name in sorted(alone & ours.keys(), key=natural)]
    rows += [f"{tuned.path}: {theirs[name]}" for name in sorted(alone & theirs.keys(), key=natural)]
    if rows:
        tip = (
            "drop them, or rename what is called otherwise: surgery drop, surgery rename; fused modules are brought to"
        )
        tip += " one form by surgery split"
        raise AdapterError(f"{len(rows)} tensors are in only one of the two checkpoints", where=listed(rows), help=tip)


def _notes(base: Checkpoint, tuned: Checkpoint) -> tuple[str, ...]:
    """What an adapter does not carry."""
    found = _differing(base.config, tuned.config)
    said = f"config.json differs in {series(listed(found))}, which an adapter does not carry"
    return (said,) if found else ()


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    keys = (one.keys() | other.keys()) - LOOSE
    return sorted(key for key in keys if one.get(key) != other.get(key))


def _files(base: Checkpoint, tuned: Checkpoint) -> dict[str, File | bytes]:
    """The tokenizer's and the chat template's files, where they are not the base's."""
    mine = {name: file for name, file in tuned.files.items() if name in OF_TOKENIZERS}
    alike = all(
        (there := base.files.get(name)) is not None and same_content(there, file) for name, file in mine.items()
    )
    return {} if alike else mine
