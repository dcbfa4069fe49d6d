"""Merge adapters into a base."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ...adapters.attention import on_attention
from ...adapters.consistency import keeps_ties, strangers, without_factors
from ...adapters.dora import gain
from ...adapters.experts import by_parameter
from ...adapters.fused import split_adapter
from ...adapters.kinds import check_kind
from ...adapters.lora import bias_delta, check_numbers, delta, matrix_of
from ...adapters.plain import plain as as_plain
from ...adapters.unwrapped import unwrapped
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NothingMatched, PlanError, SurgeryError, listed, series
from ...files.peft import CONFIG, Adapter
from ...lazy.tensor import Tensor, is_computed, reshape
from ...lazy.tensor import add as summed
from ...models.fused.given import Given, as_said
from ...models.fused.row import Site
from ...names import compiled, natural, select
from ...opened import takes_opened
from ..cast import cast
from ..header_ties import along
from ..rename import Rule, renamed
from ..split import fuse_at, names_of, sites_held, split_at
from .absent import check_head, check_held
from .across import across, check_crossed, check_given
from .additions import May, check_added, may_be_new
from .along import notes_along
from .applied import as_applied
from .base_names import check_apart, on_parameters, under_base_names, with_names
from .changes import Placed, join, module_of
from .embedded import own_names
from .frozen import without_copies
from .lineage import as_trained, check_base, on_changed
from .quantised import check_computed, check_quantised
from .refusals import check_read, not_placed
from .replicate import replicated
from .saved_modules import check_known, place_whole, share_deltas
from .superseded import both, replacements
from .task_heads import Selection, as_its_class
from .tied import Group, groups_of, narrowed, widened
from .tokenizer import with_tokenizer
from .vocabulary import with_vocabulary


@takes_opened
def merge(
    checkpoint: Checkpoint,
    adapter: Adapter | Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    names: Sequence[Rule] = (),
    scale: float = 1.0,
    only: str | None = None,
    except_: str | None = None,
    tied: str = "untie",
    again: bool = False,
    dtype: str | None = None,
    add: str | None = None,
    base_as_trained: bool = False,
    tokenizer: str | None = None,
    any_base: bool = False,
    architecture: str | None = None,
    given: Given | None = None,
) -> Checkpoint:
    """The base with the adapters in its weights: W + Σ weight * scale * B @ A, in float32, rounded once to W's
    dtype.

    Several adapters are summed before the one rounding, without cross-terms; `weights` defaults to 1 each. `names`
    are rules (regular expression, replacement) that turn the adapters' module names into the base's. Modules to
    save, trained biases and trained tokens take the place of the base's. `scale` is a factor for all weights. `only`
    and `except_` are regular expressions over whole module names of the adapters: what they leave out is dropped by
    name.

    An adapter on one of two tied tensors makes them differ: each is stored under its own name, as the live model has
    them (`tied="untie"`), or NotSupported is raised (`tied="error"`). `dtype`, such as "bfloat16", is that of the
    result: `cast`. Tokenizer and chat template are the adapter's where it has them, since it was trained with them:
    `tokenizer` is "adapter", "base", or a folder with another one.

    A tensor that an adapter holds whole may be new where it is of a head that a class of the base's type has, such
    as a `score`, or where the regular expression `add` matches its whole name. PiSSA, OLoRA, CorDA, LoRA-GA and
    LoftQ change the base before they train: `base_as_trained` says that the checkpoint is that changed base.

    The result is of the class that the adapters were trained in, as their task types and heads tell, or the one
    named `architecture`: heads of others are left out, names and config.json are that class's. `given` says how
    fused modules of the base lie, or what they are fused to, where its model type does not: an adapter may be
    trained on their parts, or on the whole.

    Raises NotPlaced where an adapter tensor has no place, NotSupported where an adapter asks for more than is
    supported, PlanError for an adapter that is in the base already, unless `again`, AdapterError for one that was
    trained on another type of model, unless `any_base`; nothing is ever half applied. Reads no base
    tensor, but of tied ones that are stored twice, and of copies of the base that several adapters, or a weighted
    one, hold.
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    weights = _weights(adapters, weights, scale)
    if tied not in ("untie", "error"):
        raise SurgeryError(f"`{tied}` is no way to merge into tied tensors", help="untie or error")
    check_given(given)
    check_read(checkpoint, adapters)
    if not again:
        _check_new(checkpoint, adapters)
    lineage = check_base(checkpoint, adapters, any_base=any_base)
    for one in adapters if architecture is None else ():
        check_head(checkpoint, one)
    checkpoint = along(
        checkpoint, lambda one: as_its_class(one, adapters, weights, Selection(names, only, except_), architecture)
    )
    checkpoint = along(checkpoint, lambda one: replicated(one, adapters))
    groups = groups_of(checkpoint)
    base, checkpoint = checkpoint, widened(checkpoint, groups)
    plain = [
        _plain(unwrapped(one, names_of(checkpoint)), base_as_trained or as_trained(checkpoint, one)) for one in adapters
    ]
    chosen, wanted = _chosen([_called(one, names) for one in plain], only, except_)
    copied = notes_along(checkpoint, chosen)
    fitting = [_fitted(checkpoint, one, given) for one in chosen]
    check_crossed(checkpoint, given, [notes[-1] for *_, notes in fitting])
    for one in plain:
        _check_aimed_at(one, names, wanted)
    parted = check_apart([site for _, sites, _ in fitting for site in sites])
    fitted = [
        split_adapter(one, held) if (held := sites_held(one, parted, fused=True)) else one for one, _, _ in fitting
    ]
    merged = _merged(split_at(checkpoint, parted) if parted else checkpoint, fitted, weights, groups, wanted, add)
    for one in plain:
        check_held(checkpoint, one)
    if parted:
        merged = replace(fuse_at(merged, parted), dropped=merged.dropped)
    left = (
        {CONFIG} if CONFIG in base.files and not own_names(base) else set[str]()
    )  # else transformers would look for an adapter
    merged, edits = narrowed(
        replace(merged, files={n: f for n, f in base.files.items() if n not in left}), base, groups, tied
    )
    merged = with_tokenizer(with_vocabulary(merged, base), adapters, tokenizer)
    if edits:
        merged = merged.with_config({**merged.config, **edits})
    step = {
        "surgery": "merge",
        "adapters": [_told(a, w) for a, w in zip(adapters, weights, strict=True)],
        "computed": sum(is_computed(t) and t != base.tensors.get(n) for n, t in merged.tensors.items()),
        "replaced": len(merged.replaced) - len(base.replaced),
        "added": sorted(merged.tensors.keys() - base.tensors.keys()),
        **{
            key: value
            for key, value in (("only", only), ("except", except_), ("add", add), ("tokenizer", tokenizer))
            if value is not None
        },
        **({"architecture": architecture} if architecture is not None else {}),
        **({"base_as_trained": True} if base_as_trained else {}),
        **({"given": as_said(given)} if given else {}),
        **({"map": [list(rule) for rule in names]} if names else {}),
    }
    said = [note for *_, notes in fitting for note in notes if note] + copied + on_changed(base, adapters)
    said += [note for one in plain for note in (*one.notes, *_idle(one, base))]
    merged = replace(
        merged,
        history=(*checkpoint.history, step),
        notes=(*merged.notes, *lineage, *said, *(f"left out, since nothing is left to adapt: {name}" for name in left)),
    )
    return cast(merged, dtype) if dtype else merged


def _told(adapter: Adapter, weight: float) -> dict[str, Any]:
    """What the history says of an adapter."""
    told: dict[str, Any] = {"digest": adapter.digest, "weight": weight, "modules": len(adapter.lora)}
    return told | ({"with": [path.rpartition("/")[2] for path in adapter.beside]} if adapter.beside else {})


def _weights(adapters: Sequence[Adapter], weights: Sequence[float] | None, scale: float) -> list[float]:
    """A finite factor for each adapter."""
    if weights is None:
        weights = [1.0] * len(adapters)
    if not adapters or len(weights) != len(adapters):
        raise SurgeryError(
            f"{len(weights)} weights for {len(adapters)} adapters", help="give one weight for each adapter"
        )
    weights = [weight * scale for weight in weights]
    if not all(map(math.isfinite, weights)):
        raise SurgeryError(
            f"the weights {', '.join(map(str, weights))} are not all finite numbers",
            help="give numbers, such as 0.7,0.3",
        )
    return weights


def _plain(adapter: Adapter, base_as_trained: bool) -> Adapter:
    """The adapter as LoRA on modules and parameters. Raises NotSupported for a kind that is not merged,
    AdapterError.
    """
    check_kind(adapter, base_as_trained=base_as_trained)
    plain = as_plain(adapter)
    check_numbers(plain)
    return on_attention(by_parameter(plain))


def _merged(
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    groups: Sequence[Group],
    wanted: Callable[[str], bool],
    add: str | None,
) -> Checkpoint:
    """The checkpoint with adapters on modules that it has."""
    placed, may = Placed(), may_be_new(checkpoint, add)
    adapters = without_copies(checkpoint, adapters, weights, groups)
    for one, weight in zip(adapters, weights, strict=True):
        more = _place(checkpoint, one, weight, groups, wanted, may)
        more.dropped = {
            (f"{one.path}: {n}" if len(adapters) > 1 else n): t for n, t in {**one.dropped, **more.dropped}.items()
        }
        join(placed, more)
    check_added(add, placed.added, adapters)
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    for name in {**placed.whole, **placed.deltas}:
        base = checkpoint.tensors[name]
        now = placed.whole.get(name, base)
        made = summed(
            reshape(now, matrix_of(now.shape)), placed.deltas.get(name, []), base.dtype, placed.gains.get(name)
        )
        tensors[name] = reshape(made, now.shape)
    gone = {
        **placed.under,
        **{n: checkpoint.tensors[n] for n, new in placed.whole.items() if checkpoint.tensors[n] != new},
    }
    replaced, dropped = replacements(checkpoint.replaced, checkpoint.dropped, gone)
    shard = checkpoint.weight_map[max(checkpoint.tensors, key=lambda n: natural(checkpoint.weight_map[n]))]
    return replace(
        checkpoint,
        tensors={**tensors, **placed.added},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(placed.added, shard)},
        replaced=replaced,
        dropped=both(dropped, placed.dropped),
        inputs=(*checkpoint.inputs, *(source for one in adapters for source in one.inputs)),
    )


def _check_aimed_at(adapter: Adapter, rules: Sequence[Rule], wanted: Callable[[str], bool]) -> None:
    """Raise AdapterError for LoRA on modules that are wanted and that adapter_config.json does not aim at, by the
    adapter's own names.
    """
    new = renamed([*adapter.lora, *adapter.whole], rules) if rules else {}
    found = [module for module in strangers(adapter) if wanted(new.get(module, module))]
    if found:
        raise AdapterError(
            f"adapter_config.json does not aim at {len(found)} of the {len(adapter.lora)} modules that the adapter has"
            " LoRA on",
            where=[adapter.path, *listed(found), f"target_modules = {adapter.config.get('target_modules')!r}"],
            help=(
                "PEFT would pass over them: restore adapter_config.json from the training, or leave them out with"
                " --except"
            ),
        )


def _idle(adapter: Adapter, base: Checkpoint) -> list[str]:
    """A note on what the config aims at and the adapter has nothing for."""
    if not (idle := without_factors(adapter, base.tensors)):
        return []
    return [
        f"adapter_config.json aims at {len(idle)} modules that {adapter.path} has no factors for:"
        f" {', '.join(listed(idle, 3))}"
    ]


def _called(adapter: Adapter, rules: Sequence[Rule]) -> Adapter:
    """The adapter with its modules called as the rules say."""
    return with_names(adapter, renamed([*adapter.lora, *adapter.whole], rules)) if rules else adapter


def _check_new(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Raise PlanError for an adapter that was merged before, as the checkpoint's history says, or that is given
    twice.
    """
    given: dict[str, str] = {}
    before = {
        one.get("digest")
        for step in checkpoint.history
        if step.get("surgery") == "merge"
        for one in step.get("adapters", ())
    }
    for one in adapters:
        if one.inputs and one.digest in before:
            tip = "its delta would be added twice; if that is meant: --again"
            raise PlanError("the adapter is merged into this base already", where=[one.path, checkpoint.path], help=tip)
        if one.inputs and one.digest in given:
            tip = "its delta would be added twice; give it once, with another weight, or, if that is meant: --again"
            raise PlanError(
                "the adapter is given twice", where=list(dict.fromkeys([given[one.digest], one.path])), help=tip
            )
        given[one.digest] = one.path


def _chosen(
    adapters: Sequence[Adapter], only: str | None, except_: str | None
) -> tuple[list[Adapter], Callable[[str], bool]]:
    """The adapters without the modules that the patterns leave out, dropped by name; and whether they leave a module
    in.
    """
    modules = sorted({module for one in adapters for module in (*one.lora, *map(module_of, one.whole))}, key=natural)
    kept = set(select(modules, only) if only is not None else modules)
    gone = set(select(modules, except_)) if except_ is not None else set[str]()
    if not kept - gone:
        raise NothingMatched(
            "the patterns leave nothing to merge", help=f"modules are such as {series(listed(modules, 3))}"
        )
    rules = [compiled(pattern) if pattern is not None else None for pattern in (only, except_)]

    def wanted(module: str) -> bool:
        return (rules[0] is None or bool(rules[0].fullmatch(module))) and not (rules[1] and rules[1].fullmatch(module))

    return [_restricted(one, wanted) for one in adapters], wanted


def _restricted(adapter: Adapter, wanted: Callable[[str], bool]) -> Adapter:
    """The adapter on the wanted modules; the rest is dropped by name."""
    left = {f"{m}.{part}": t for m, parts in adapter.lora.items() if not wanted(m) for part, t in parts.items()}
    left |= {name: t for name, t in adapter.whole.items() if not wanted(module_of(name))}
    return replace(
        adapter,
        lora={module: parts for module, parts in adapter.lora.items() if wanted(module)},
        whole={name: tensor for name, tensor in adapter.whole.items() if wanted(module_of(name))},
        dropped={**adapter.dropped, **{adapter.names[key]: tensor for key, tensor in left.items()}},
    )


def _fitted(checkpoint: Checkpoint, adapter: Adapter, given: Given | None) -> tuple[Adapter, list[Site], list[str]]:
    """An adapter that fits the base: under its names, on what it stores; the modules to be taken apart for it; notes
    on it.
    """
    adapter, renames = under_base_names(checkpoint, adapter, given)
    adapter, unapplied = as_applied(checkpoint, adapter)
    adapter, experts, single = on_parameters(checkpoint, adapter)
    adapter, sites, crossed = across(checkpoint, adapter, given)
    return adapter, [*experts, *sites], [renames, unapplied, single, crossed]


def _place(
    checkpoint: Checkpoint,
    adapter: Adapter,
    weight: float,
    groups: Sequence[Group],
    wanted: Callable[[str], bool],
    may: May,
) -> Placed:
    """Find each adapter tensor's place in the base, or fail for all that have none."""
    placed, lost = Placed(), list[str]()
    unplaced = place_whole(checkpoint, adapter, weight, placed, groups, wanted, may)
    for name, one in adapter.deltas.items():
        placed.deltas.setdefault(name, []).append(one.times(weight))
    for module in sorted(adapter.lora, key=natural):
        if f"{module}.weight" in checkpoint.tensors:
            _place_module(checkpoint, adapter, module, weight, placed)
        else:
            lost.append(module)
    if lost or unplaced:
        check_quantised(checkpoint, adapter, lost)
        raise not_placed(checkpoint, adapter, [*lost, *unplaced])
    if keeps_ties(adapter):
        for group in groups:
            share_deltas(adapter, placed, [name for name in group.kept if wanted(module_of(name))])
    return placed


def _place_module(checkpoint: Checkpoint, adapter: Adapter, module: str, weight: float, placed: Placed) -> None:
    """Find the place of the LoRA on a module: its weight, what scales that, and its bias."""
    name, bias = f"{module}.weight", f"{module}.bias"
    check_known(checkpoint, adapter, name)
    base = placed.whole.get(name, checkpoint.tensors[name])
    check_computed(checkpoint, adapter, module, base)
    one = delta(adapter, module, name, base.shape, checkpoint.config)
    placed.deltas.setdefault(name, []).append(one.times(weight))
    if scaled := gain(adapter, module, reshape(base, matrix_of(base.shape)), one, weight):
        placed.gains[name] = scaled
    if more := bias_delta(adapter, module, checkpoint.tensors.get(bias)):
        placed.deltas.setdefault(bias, []).append(more.times(weight))
