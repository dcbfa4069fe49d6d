"""What kind of module each weight of a base belongs to, under the names that the class has in memory, where PEFT
meets them.

Told from config.json, names and shapes (`told`): a weight of two axes is a Linear's, unless its last name is an
embedding's or, in the types that have them, a Conv1D's or a router's; one of three to five axes is a convolution's.
Or said by the class (`checked`), built by transformers on the meta device; what the files hold has to agree with it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import PlanError, SurgeryError, listed
from ...lazy.tensor import Shape
from ...models.families import (
    BUFFERS,
    CAUSAL_MASKS,
    GROUPED_CONVOLUTIONS,
    LINEAR_EMBEDDINGS,
    OTHER_EMBEDDINGS,
    OUTPUT_HEAD,
    OUTPUT_HEADS,
    ROUTERS,
    TRANSPOSED_CONVOLUTIONS,
    is_conv1d,
)
from ...models.fused.layout import sections
from ...models.fused.row import Site
from ...models.names_v5 import in_memory, renames_of
from ...models.tying import all_families, holder_of
from ...names import is_called, natural
from ..split import fused_in, split_in

# torch's weight_norm stores a weight as its directions and their lengths, under old names and new ones.
_NORMED = re.compile(r"(?P<module>.+)\.(?:weight_v|parametrizations\.weight\.original1)", re.DOTALL)


class Kind(Enum):
    """Kinds of modules that LoRA can be put on, and all others."""

    LINEAR = "Linear"
    CONV1D = "Conv1D"
    EMBEDDING = "Embedding"
    CONVOLUTION = "convolution"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Module:
    """A module with a weight of two axes or more."""

    kind: Kind
    weight: str  # the base's tensor: its own, or the one that it is tied to; empty: the base does not store it as it is
    shape: Shape
    groups: int = 1  # of a convolution; 0: shape and model type do not tell
    head: bool = False  # the output head
    what: str = ""  # the class of one of another kind


def told(base: Checkpoint) -> dict[str, Module]:
    """The modules by name in memory, as config.json, names and shapes tell; tied ones that are not stored as well."""
    config, renames, inside = base.config, renames_of(base.config), _in_stacks(base)
    found: dict[str, Module] = {}
    for name, holder in {**{name: name for name in base.tensors}, **tied(base)}.items():
        shape = base.tensors[holder].shape
        if name.endswith(".weight") and len(shape) > 1:
            module = in_memory(name, renames).removesuffix(".weight")
            kind, what = (Kind.OTHER, inside[name]) if name in inside else _kind(config, module, shape)
            found[module] = Module(kind, holder, shape, _groups(config, shape), _is_head(config, module), what)
        elif (normed := _NORMED.fullmatch(name)) and len(shape) > 1:
            module = in_memory(f"{normed['module']}.weight", renames).removesuffix(".weight")
            found[module] = Module(_kind(config, module, shape)[0], "", shape, 0)
    return found


def checked(base: Checkpoint, modules: Mapping[str, Module], parted: Sequence[Site]) -> tuple[dict[str, Module], int]:
    """The modules as the class has them, and its parameters' number; for those at `parted`, which are taken apart,
    their parts.

    Raises PlanError where the class cannot be asked, or where its shapes are not the base's.
    """
    from ...models.skeleton import anatomy

    names = base.config.get("architectures") or []
    if not names:
        tip = "leave --check-class away, or restore config.json"
        raise PlanError("config.json names no class that could be asked", where=[f"{base.path}: config.json"], help=tip)
    asked = anatomy(base.config, str(names[0]))
    shared = {**asked.tied, **{source: name for name, source in asked.tied.items()}}
    found: dict[str, Module] = {part: modules[part] for site in parted for part in site.parts}
    apart = {site.module for site in parted}
    wrong = []
    for name, (kind, shape, groups) in asked.modules.items():
        other = shared.get(f"{name}.weight", "").removesuffix(".weight")
        if name in apart:
            continue
        known = modules.get(name) or modules.get(other) or Module(Kind.OTHER, "", shape)
        if known.shape != shape:
            wrong.append(f"{name}: {shape} in the class, {known.shape} in {known.weight}")
        said = next((one for one in Kind if one.value == kind), Kind.OTHER)
        found[name] = replace(known, kind=said, shape=shape, groups=groups, head=name == asked.head, what=kind)
    if wrong:
        tip = "config.json is another model's: restore it"
        raise PlanError(f"{names[0]} and the files contradict each other", where=[base.path, *listed(wrong)], help=tip)
    return dict(sorted(found.items(), key=lambda pair: natural(pair[0]))), sum(
        _size(shape) for shape in asked.parameters.values()
    )


def parameters_in(base: Checkpoint) -> int:
    """How many parameters the base stores: what are buffers by their names is not counted."""
    kinds = _types(base.config)
    masks = [end for kind, end in CAUSAL_MASKS.items() if kind in kinds]
    return sum(
        t.size for n, t in base.tensors.items() if n.rpartition(".")[2] not in BUFFERS and not is_called(n, masks)
    )


def tied(base: Checkpoint) -> dict[str, str]:
    """Names of tensors that the base does not store, to the tied ones that it stores instead."""
    found = dict[str, str]()
    for names in all_families(base.config, base.tensors, base.metadata):
        found |= {name: holder_of(names, base.tensors) for name in names if name not in base.tensors}
    return found


def _in_stacks(base: Checkpoint) -> dict[str, str]:
    """The weights that are a parameter's in memory, with all experts in it: each expert's own, or that of a stack
    with a module's name.
    """
    try:
        stored, apart = fused_in(base, ("experts",)), [site for site in split_in(base, ("experts",)) if site.row.asked]
    except SurgeryError:
        return {}
    single = {f"{part}.weight": "one expert of a stack" for site in apart for part in site.parts}
    return single | {
        f"{site.module}{suffix}": "a stack of experts" for site in stored for suffix in site.row.fused_suffixes
    }


def _kind(config: Mapping[str, Any], module: str, shape: Shape) -> tuple[Kind, str]:
    leaf = next((part for part in reversed(module.split(".")) if not part.isdigit()), "").rstrip("_0123456789")
    if len(shape) > 2 and leaf in TRANSPOSED_CONVOLUTIONS:
        return Kind.OTHER, "a transposed convolution"
    if len(shape) > 2:
        return (Kind.CONVOLUTION, "") if len(shape) <= 5 else (Kind.OTHER, f"a weight of {len(shape)} axes")
    if _types(config) & ROUTERS.get(leaf, frozenset()):
        return Kind.OTHER, "a router"
    if leaf in OTHER_EMBEDDINGS or ("embed" in leaf.lower() and leaf not in LINEAR_EMBEDDINGS):
        return Kind.EMBEDDING, ""
    return (Kind.CONV1D if is_conv1d(config, module) else Kind.LINEAR), ""


def _groups(config: Mapping[str, Any], shape: Shape) -> int:
    """One channel a group may be as many groups as channels, or one group of one channel: a depthwise convolution,
    or a first one.
    """
    return 0 if len(shape) > 2 and (shape[1] == 1 or _types(config) & GROUPED_CONVOLUTIONS) else 1


def _is_head(config: Mapping[str, Any], module: str) -> bool:
    return bool(OUTPUT_HEAD.fullmatch(module)) or module == OUTPUT_HEADS.get(str(config.get("model_type")))


def _types(config: Mapping[str, Any]) -> set[str]:
    return {str(section.get("model_type")) for section in sections(config)}


def _size(shape: Shape) -> int:
    size = 1
    for length in shape:
        size *= length
    return size
