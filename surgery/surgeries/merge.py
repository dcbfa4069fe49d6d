"""Merge adapters into a base."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..adapters.fused import split_adapter
from ..adapters.lora import check_config, delta
from ..checkpoint import Checkpoint
from ..dtypes import ARITHMETIC
from ..errors import AdapterError, NotPlaced, NotSupported, PlanError, SurgeryError, listed, nearest
from ..families import EMBEDDINGS, HEADS, is_tied
from ..formats.peft import Adapter, base_name
from ..fused.row import Site
from ..names import natural
from ..tensor import LowRank, Tensor, add, is_computed
from .rename import Rule, renamed
from .split import fuse_at, fused_in, sites_held, split_at, split_in


@dataclass
class _Placed:
    """What the adapters do to the base: deltas by tensor, tensors that take another's place, tensors that are new."""

    deltas: dict[str, list[LowRank]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)


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
    for one in adapters:
        check_config(one)
    fitting = [_across(checkpoint, _called(one, names)) for one in adapters]
    parted = list({site.module: site for _, sites, _ in fitting for site in sites}.values())
    merged = _merged(split_at(checkpoint, parted) if parted else checkpoint, [one for one, _, _ in fitting], weights)
    if parted:
        merged = replace(fuse_at(merged, parted), files=checkpoint.files, dropped=checkpoint.dropped)
    added = sorted(merged.tensors.keys() - checkpoint.tensors.keys())
    step = {
        "surgery": "merge",
        "adapters": [{"digest": a.digest, "weight": w, "modules": len(a.lora)} for a, w in zip(adapters, weights, strict=True)],
        "computed": sum(is_computed(t) and t != checkpoint.tensors.get(n) for n, t in merged.tensors.items()),
        "replaced": len(merged.replaced) - len(checkpoint.replaced),
        "added": added,
    }
    return replace(merged, history=(*checkpoint.history, step), notes=(*merged.notes, *(note for *_, note in fitting if note)))


def _merged(checkpoint: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float]) -> Checkpoint:
    """The checkpoint with adapters on modules that it has."""
    placed = _Placed()
    for one, weight in zip(adapters, weights, strict=True):
        _join(placed, _place(checkpoint, one, weight))
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    for name in {**placed.whole, **placed.deltas}:
        base = checkpoint.tensors[name]
        tensors[name] = add(placed.whole.get(name, base), placed.deltas.get(name, []), base.dtype)
    shard = checkpoint.weight_map[max(checkpoint.tensors, key=lambda n: natural(checkpoint.weight_map[n]))]
    return replace(
        checkpoint,
        tensors={**tensors, **placed.added},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(placed.added, shard)},
        replaced={**checkpoint.replaced, **{n: checkpoint.tensors[n] for n in placed.whole}},
        notes=(*checkpoint.notes, *(note for one in adapters for note in _strangers(checkpoint, one))),
        inputs=(*checkpoint.inputs, *(source for one in adapters for source in one.inputs)),
    )


def _called(adapter: Adapter, rules: Sequence[Rule]) -> Adapter:
    """The adapter with its modules called as the rules say."""
    if not rules:
        return adapter
    new = renamed([*adapter.lora, *adapter.whole], rules)
    names = {f"{new[m]}.{part}": adapter.names[f"{m}.{part}"] for m, parts in adapter.lora.items() for part in parts}
    return replace(
        adapter,
        lora={new[module]: parts for module, parts in adapter.lora.items()},
        whole={new[name]: tensor for name, tensor in adapter.whole.items()},
        names=names | {new[name]: adapter.names[name] for name in adapter.whole},
    )


def _across(checkpoint: Checkpoint, adapter: Adapter) -> tuple[Adapter, list[Site], str]:
    """An adapter that fits a base which stores fused what it was trained on apart, or apart what it was trained on fused.

    (the adapter, split where the base is; the modules of the base to be split for it, and fused again; a note on it)
    """
    wanted = {*(f"{module}.weight" for module in adapter.lora), *adapter.whole}
    if wanted <= checkpoint.tensors.keys():
        return adapter, [], ""
    if held := sites_held(adapter, split_in(checkpoint), fused=True):
        note = f"the adapter was trained on {held[0].row.fused}, which the base stores apart: its rows were split with it"
        return split_adapter(adapter, held), [], note
    if held := sites_held(adapter, fused_in(checkpoint), fused=False):
        parts = [part for site in held for part in site.parts if part in adapter.lora or f"{part}.weight" in adapter.whole]
        leaves = ", ".join(dict.fromkeys(part.rpartition(".")[2] for part in parts))
        return adapter, held, f"the adapter was trained on {leaves}, which the base stores as {held[0].row.fused}: merged into its rows"
    return adapter, [], ""


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


def _place(checkpoint: Checkpoint, adapter: Adapter, weight: float) -> _Placed:
    """Find each adapter tensor's place in the base, or fail for all that have none."""
    saved = adapter.config.get("modules_to_save") or []
    placed, lost = _Placed(), []
    for module in sorted(adapter.lora, key=natural):
        name = f"{module}.weight"
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
    for name, value in adapter.whole.items():
        module = name.rpartition(".")[0]
        if name in checkpoint.tensors:
            _check_whole(checkpoint, adapter, name, value, weight)
            placed.whole[name] = value
        elif any(module == s or module.endswith(f".{s}") for s in saved) and not _has_module(checkpoint, module):
            _check_untied(checkpoint, adapter, name)
            placed.added[name] = value  # a head that the base does not have, such as qa_outputs on a pretrained BERT
        else:
            lost.append(name)
    if lost:
        modules = [key if key in adapter.lora else key.rpartition(".")[0] for key in lost]
        if all(map(_is_head, modules)):  # the half of a tied pair that the base does not store
            _check_untied(checkpoint, adapter, f"{modules[0]}.weight")
        raise _not_placed(checkpoint, adapter, lost)
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


def _check_whole(checkpoint: Checkpoint, adapter: Adapter, name: str, value: Tensor, weight: float) -> None:
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


def _not_placed(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str]) -> NotPlaced:
    """The error for adapter modules without a place: which, what is near, and the rule that would mend it."""
    bases = {n.rpartition(".")[0] for n in checkpoint.tensors}
    bases |= {part for site in fused_in(checkpoint) for part in site.parts} | {site.module for site in split_in(checkpoint)}
    modules = {key: key for key in adapter.lora} | {key: key.rpartition(".")[0] for key in adapter.whole}
    near = nearest(modules[lost[0]], bases)
    rule = _mending(modules, lost, bases)
    rows = [_row(adapter, key) for key in lost]
    tips = [f"--map '{rule[0]}={rule[1]}' would place them" if rule else "", f"the nearest names are {', '.join(near)}" if near else ""]
    return NotPlaced(
        f"{len({modules[key] for key in lost})} of the adapter's {len(set(modules.values()))} modules have no place in the base",
        where=[adapter.path, *listed(rows)],
        help="; ".join(t for t in tips if t) or ("the adapter belongs to another architecture" if len(lost) == len(modules) else None),
    )


def _row(adapter: Adapter, key: str) -> str:
    """A module or tensor without a place: as the file calls it, and as it was renamed."""
    name = adapter.names.get(key) or adapter.names[f"{key}.{next(iter(adapter.lora[key]))}"]
    before = base_name(name)
    before = before if key in adapter.whole else before.rpartition(".lora_")[0]
    return key if before == key else f"{before} -> {key}"


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
