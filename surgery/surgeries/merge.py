"""Merge adapters into a base."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..adapters.lora import check_config, delta
from ..checkpoint import Checkpoint, Input
from ..dtypes import ARITHMETIC
from ..errors import AdapterError, NotPlaced, NotSupported, PlanError, SurgeryError, listed, nearest
from ..families import EMBEDDINGS, HEADS, is_tied
from ..formats.peft import Adapter
from ..fused.detect import detect, detect_split
from ..names import natural
from ..tensor import LowRank, Stored, Tensor, add
from .rename import Rule, renamed


@dataclass
class _Placed:
    """What the adapters do to the base: deltas by tensor, tensors that take another's place, tensors that are new."""

    deltas: dict[str, list[LowRank]] = field(default_factory=dict)
    whole: dict[str, Stored] = field(default_factory=dict)
    added: dict[str, Stored] = field(default_factory=dict)


def merge(
    checkpoint: Checkpoint,
    adapter: Adapter | Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    names: Sequence[Rule] = (),
) -> Checkpoint:
    """The base with the adapters in its weights: W + Σ weight * scale * B @ A, in float32, rounded once to W's dtype.

    Several adapters are summed before the one rounding, without cross-terms; `weights` defaults to 1 each. `names` are
    rules (regular expression, replacement) that turn the adapters' module names into the base's. Modules to save and
    trained biases take the place of the base's. Reads no base tensor. Raises NotPlaced where an adapter tensor has no
    place, NotSupported where an adapter asks for more than is supported; nothing is ever half applied.
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    if weights is None:
        weights = [1.0] * len(adapters)
    if not adapters or len(weights) != len(adapters):
        raise SurgeryError(f"{len(weights)} weights for {len(adapters)} adapters", help="give one weight for each adapter")
    if not all(map(math.isfinite, weights)):
        raise SurgeryError(f"the weights {', '.join(map(str, weights))} are not all finite numbers", help="give numbers, such as 0.7,0.3")
    placed = _Placed()
    for one, weight in zip(adapters, weights, strict=True):
        check_config(one)
        _join(placed, _place(checkpoint, one, weight, names))
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    for name in {**placed.whole, **placed.deltas}:
        base = checkpoint.tensors[name]
        tensors[name] = add(placed.whole.get(name, base), placed.deltas.get(name, []), base.dtype)
    shard = checkpoint.weight_map[max(checkpoint.tensors, key=lambda n: natural(checkpoint.weight_map[n]))]
    step = {
        "surgery": "merge",
        "adapters": [{"digest": a.digest, "weight": w, "modules": len(a.lora)} for a, w in zip(adapters, weights, strict=True)],
        "computed": len(placed.deltas),
        "replaced": len(placed.whole),
        "added": sorted(placed.added),
    }
    return checkpoint.with_step(
        step,
        tensors={**tensors, **placed.added},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(placed.added, shard)},
        replaced={**checkpoint.replaced, **{n: checkpoint.tensors[n] for n in placed.whole}},
        notes=(*checkpoint.notes, *(note for one in adapters for note in _strangers(checkpoint, one))),
        inputs=(*checkpoint.inputs, *(Input("adapter", a.path, a.files, a.tensors) for a in adapters)),
    )


def _join(placed: _Placed, more: _Placed) -> None:
    """Add what one more adapter does. Within one, LoRA adds to the tensor that it saved along, such as an lm_head's."""
    if both := (placed.whole.keys() & more.whole.keys()) | (placed.added.keys() & more.added.keys()):
        tip = "merge one of them, or remove the tensor from the other"
        raise PlanError("two adapters replace the same tensor", where=listed(sorted(both)), help=tip)
    if both := (placed.whole.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.whole.keys()):
        tip = "merge them one after another"
        raise PlanError("one adapter replaces a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    placed.whole |= more.whole
    placed.added |= more.added
    for name, deltas in more.deltas.items():
        placed.deltas.setdefault(name, []).extend(deltas)


def _place(checkpoint: Checkpoint, adapter: Adapter, weight: float, names: Sequence[Rule]) -> _Placed:
    """Find each adapter tensor's place in the base, or fail for all that have none."""
    called = renamed([*adapter.lora, *adapter.whole], names)
    saved = adapter.config.get("modules_to_save") or []
    placed, lost = _Placed(), []
    for module in sorted(adapter.lora, key=natural):
        name = f"{called[module]}.weight"
        if name not in checkpoint.tensors:
            lost.append(module)
            continue
        _check_untied(checkpoint, adapter, name)
        base = checkpoint.tensors[name]
        if base.dtype not in ARITHMETIC:
            raise NotSupported(
                f"cannot compute on {base.dtype} tensors",
                where=[f"{adapter.path}: {module}", f"base: {name}"],
                help="dequantise the base first; F16, BF16, F32 and F64 are computed",
            )
        one = delta(adapter, module, name, base.shape, checkpoint.config)
        placed.deltas.setdefault(name, []).append(LowRank(one.left, one.right, one.scale * weight))
    for key, value in adapter.whole.items():
        name = called[key]
        module = name.rpartition(".")[0]
        if name in checkpoint.tensors:
            _check_whole(checkpoint, adapter, name, value, weight)
            placed.whole[name] = value
        elif any(module == s or module.endswith(f".{s}") for s in saved) and not _has_module(checkpoint, module):
            _check_untied(checkpoint, adapter, name)
            placed.added[name] = value  # a head that the base does not have, such as qa_outputs on a pretrained BERT
        else:
            lost.append(key)
    if lost:
        modules = [called[key] if key in adapter.lora else called[key].rpartition(".")[0] for key in lost]
        if all(map(_is_head, modules)):  # the half of a tied pair that the base does not store
            _check_untied(checkpoint, adapter, f"{modules[0]}.weight")
        raise _not_placed(checkpoint, adapter, lost, called)
    return placed


def _strangers(checkpoint: Checkpoint, adapter: Adapter) -> list[str]:
    """Shapes may fit by chance: say so where adapter and base name different classes."""
    trained = (adapter.config.get("auto_mapping") or {}).get("base_model_class")
    classes = checkpoint.config.get("architectures") or []
    if trained is None or not classes or trained in classes:
        return []
    return [f"the adapter was trained on {trained}, config.json says {', '.join(classes)}: every tensor fits, but is this its base?"]


def _has_module(checkpoint: Checkpoint, module: str) -> bool:
    return any(n.startswith(f"{module}.") for n in checkpoint.tensors)


def _is_head(module: str) -> bool:
    return module.rpartition(".")[2] in EMBEDDINGS | HEADS


def _check_untied(checkpoint: Checkpoint, adapter: Adapter, name: str) -> None:
    if _is_head(name.rpartition(".")[0]) and is_tied(checkpoint.config):
        raise NotSupported(
            "the adapter changes one of two tied tensors, which would make them differ",
            where=[f"{adapter.path}: {name}", "config.json: tie_word_embeddings is true, or the model type's default"],
            help="untie the base first: store both tensors and set tie_word_embeddings to false",
        )


def _check_whole(checkpoint: Checkpoint, adapter: Adapter, name: str, value: Stored, weight: float) -> None:
    _check_untied(checkpoint, adapter, name)
    base = checkpoint.tensors[name]
    if base.shape != value.shape:
        raise AdapterError(
            f"the adapter's tensor is {value.shape}, the base's {base.shape}",
            where=[f"{adapter.path}: {adapter.names[name]}" if name in adapter.names else name, f"base: {name}"],
            help="a resized vocabulary is not supported; resize the base first",
        )
    if weight != 1:
        raise NotSupported(
            "an adapter that replaces whole tensors can only be merged with weight 1",
            where=[f"{adapter.path}: {name}"],
            help="leave the weight at 1, or remove the tensor from the adapter",
        )


def _not_placed(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str], called: Mapping[str, str]) -> NotPlaced:
    """The error for adapter modules without a place: which, what is near, and the rule that would mend it."""
    bases = {n.rpartition(".")[0] for n in checkpoint.tensors}
    modules = {key: name if key in adapter.lora else name.rpartition(".")[0] for key, name in called.items()}
    near = nearest(modules[lost[0]], bases)
    rule = _mending(modules, lost, bases)
    parts = {p.rpartition(".")[2] for site in detect(checkpoint.config, checkpoint.tensors) for p in site.parts}
    fused = parts & {modules[key].rpartition(".")[2] for key in lost}
    split = {site.row.fused for site in detect_split(checkpoint.config, checkpoint.tensors)} & {
        modules[key].rpartition(".")[2] for key in lost
    }
    rows = [f"{key} -> {called[key]}" if called[key] != key else key for key in lost]
    tips = ["the base stores them fused: split it first with surgery split-qkv" if fused else ""]
    tips += ["the base is split: fuse it first with surgery fuse-qkv, and split the result" if split else ""]
    tips += [f"--map '{rule[0]}={rule[1]}' would place them" if rule else "", f"the nearest names are {', '.join(near)}" if near else ""]
    return NotPlaced(
        f"{len({modules[key] for key in lost})} of the adapter's {len(set(modules.values()))} modules have no place in the base",
        where=[adapter.path, *listed(rows)],
        help="; ".join(t for t in tips if t) or ("the adapter belongs to another architecture" if len(lost) == len(called) else None),
    )


def _mending(modules: Mapping[str, str], lost: Sequence[str], bases: set[str]) -> Rule | None:
    """A rule that gives the lost modules a place, and leaves the others where they are; None where none is found."""
    stay = {name for key, name in modules.items() if key not in lost}
    for rule in _prefixes(modules[lost[0]], bases):
        new = {name: re.sub(*rule, name) for name in modules.values()}
        if all(new[modules[key]] in bases for key in lost) and all(new[name] == name for name in stay):
            return rule
    return None


def _prefixes(name: str, bases: set[str]) -> Iterator[Rule]:
    """The rules that turn `name` into a base name by changing its first parts."""
    for base in sorted(b for b in bases if b.endswith(f".{name}")):
        prefix, first = base.removesuffix(name), name.partition(".")[0]
        yield "^", prefix
        yield f"^{re.escape(first)}\\.", f"{prefix}{first}."
    parts = name.split(".")
    for i in range(1, len(parts)):
        tail, head = ".".join(parts[i:]), re.escape(".".join(parts[:i]) + ".")
        if tail in bases:
            yield f"^{head}", ""
        for base in sorted(b for b in bases if b.endswith(f".{tail}") and "." in tail):
            yield f"^{head}", base.removesuffix(tail)
