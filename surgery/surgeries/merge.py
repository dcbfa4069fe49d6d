"""Merge adapters into a base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..adapters.lora import check_config, delta
from ..checkpoint import Checkpoint, Input
from ..errors import AdapterError, NotPlaced, NotSupported, PlanError, SurgeryError, listed, nearest
from ..families import EMBEDDINGS, HEADS, is_tied
from ..formats.peft import Adapter
from ..layouts import detect
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
    placed = _Placed()
    for one, weight in zip(adapters, weights, strict=True):
        check_config(one)
        _place(checkpoint, one, weight, names, placed)
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    replaced: dict[str, Tensor] = {}
    for name, value in placed.whole.items():
        if name in placed.deltas:
            raise PlanError("one adapter replaces a tensor that another one adds to", where=[name], help="merge them one after another")
        replaced[name] = tensors[name]
        tensors[name] = add(value, [], checkpoint.tensors[name].dtype)
    for name, deltas in placed.deltas.items():
        tensors[name] = add(tensors[name], deltas)
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
        dropped={**checkpoint.dropped, **{f"{n} (replaced by the adapter's)": t for n, t in replaced.items()}},
        inputs=(*checkpoint.inputs, *(Input("adapter", a.path, a.files, a.tensors, a.digest) for a in adapters)),
    )


def _place(checkpoint: Checkpoint, adapter: Adapter, weight: float, names: Sequence[Rule], placed: _Placed) -> None:
    """Find each adapter tensor's place in the base, or fail for all that have none."""
    called = renamed([*adapter.lora, *adapter.whole], names)
    saved = adapter.config.get("modules_to_save") or []
    lost = []
    for module in sorted(adapter.lora, key=natural):
        name = f"{called[module]}.weight"
        if name not in checkpoint.tensors:
            lost.append(module)
            continue
        _check_untied(checkpoint, adapter, name)
        base = checkpoint.tensors[name]
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
        raise _not_placed(checkpoint, adapter, lost, called)


def _has_module(checkpoint: Checkpoint, module: str) -> bool:
    return any(n.startswith(f"{module}.") for n in checkpoint.tensors)


def _check_untied(checkpoint: Checkpoint, adapter: Adapter, name: str) -> None:
    leaf = name.rpartition(".")[0].rpartition(".")[2]
    if leaf in EMBEDDINGS | HEADS and is_tied(checkpoint.config):
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
    first = called[lost[0]]
    near = nearest(first, bases)
    rule = _mending(first, bases)
    parts = {p for f in detect(checkpoint.config, sorted(bases)) for p in f.family.parts}
    fused = parts & {called[key].rpartition(".")[2] for key in lost}
    rows = [f"{key} -> {called[key]}" if called[key] != key else key for key in lost]
    tips = ["the base stores them fused: split it first with surgery split-qkv" if fused else ""]
    tips += [f"--map '{rule}' would place them" if rule else "", f"the nearest names are {', '.join(near)}" if near else ""]
    total = len(adapter.lora) + len(adapter.whole)
    return NotPlaced(
        f"{len(lost)} of the adapter's {total} modules have no place in the base",
        where=[adapter.path, *listed(rows)],
        help="; ".join(t for t in tips if t) or "the adapter belongs to another architecture",
    )


def _mending(name: str, bases: set[str]) -> str | None:
    """The rule FROM=TO that turns `name` into a base name by changing its first parts."""
    ends = [(base, name) for base in bases if base.endswith(f".{name}")]
    if ends:
        return f"^={min(ends)[0].removesuffix(name)}"
    parts = name.split(".")
    for i in range(1, len(parts)):
        tail = ".".join(parts[i:])
        head = ".".join(parts[:i]) + "."
        escaped = head.replace(".", "\\.")
        if tail in bases:
            return f"^{escaped}="
        longer = sorted(b for b in bases if b.endswith(f".{tail}"))
        if longer and i < len(parts) - 1:
            return f"^{escaped}={longer[0].removesuffix(tail)}"
    return None
