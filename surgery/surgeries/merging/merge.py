"""Merge adapters into a base."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, NamedTuple

from ...adapters.attention import on_attention
from ...adapters.consistency import keeps_ties, strangers
from ...adapters.dora import gain
from ...adapters.experts import by_parameter
from ...adapters.fused import split_adapter
from ...adapters.kinds import check_kind
from ...adapters.lora import bias_delta, check_numbers, delta, matrix_of
from ...adapters.methods import method_of
from ...adapters.plain import plain as as_plain
from ...adapters.unwrapped import unwrapped
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NothingMatched, PlanError, SurgeryError, listed, series
from ...files.adapters.format import TOLD
from ...files.called import called
from ...files.history import merged_in
from ...files.peft import CONFIG, Adapter
from ...lazy.dropped import both
from ...lazy.tensor import Tensor, in_dtype, is_computed, reshape
from ...lazy.tensor import add as summed
from ...models.fused.given import Given, as_said
from ...models.fused.row import Site
from ...names import check_parts, compiled, natural, select
from ...quantization.settle import decoded, settled
from ...step import CODES, MERGING, Option, step
from ..cast import DTYPES, with_dtype
from ..header_ties import along
from ..rename import Rule, renamed
from ..split import fuse_at, names_of, sites_held, split_at
from .absent import check_head, check_held
from .across import across, check_crossed, check_given
from .additions import May, check_added, may_be_new
from .along import notes_along
from .applied import as_applied
from .base_names import check_apart, on_parameters, under_base_names, with_names
from .by_component import by_component
from .changes import Placed, join, module_of, turned
from .frozen import without_copies
from .held_weights import without_own_base
from .in_original import in_original
from .joined import apart_again, check_divisible, check_one_way, stored_apart
from .lineage import as_trained, check_base, of_other_class, on_changed
from .methods import notes_on_sums, place_method, sources_of
from .own_lora import own_adapter, own_names
from .prepared import prepared
from .quantised import check_computed, check_quantised, check_way, read_quantised, way
from .refusals import check_read, not_placed
from .replicate import replicated
from .saved_modules import check_known, place_whole, share_deltas
from .spelled import in_base_names
from .superseded import replacements
from .task_heads import Selection, as_its_class
from .through import through_codes
from .tied import Group, groups_of, narrowed, widened
from .tokenizer import with_tokenizer
from .trained_base import on_codes
from .trained_on import with_costs
from .unadapted import notes_on_unadapted
from .vocabulary import with_vocabulary


@step
def merge(
    checkpoint: Annotated[
        Checkpoint, Option("The base checkpoint: a folder, one file, or org/name on the Hub.", "BASE")
    ],
    adapter: Annotated[
        Adapter | Sequence[Adapter] | None,
        Option(
            "PEFT adapters, here or on the Hub, summed in one pass; without one, BASE's own LoRA.",
            "ADAPTER",
            ("adapters",),
        ),
    ] = None,
    weights: Annotated[
        Sequence[float] | None,
        Option("One factor for each adapter, such as 0.7,0.3.", "W,W,…", panel=MERGING, each="adapters"),
    ] = None,
    *,
    names: Annotated[
        Sequence[Rule],
        Option(
            "Rewrite the adapters' names, wherever REGEX occurs; may be given often.",
            "REGEX=REPLACEMENT",
            ("--map",),
            MERGING,
        ),
    ] = (),
    scale: Annotated[float, Option("A factor for all of them.", "X", panel=MERGING)] = 1.0,
    only: Annotated[
        str | None, Option("Merge the modules whose whole name matches; drop the rest.", "REGEX", panel=MERGING)
    ] = None,
    except_: Annotated[str | None, Option("Drop the modules whose whole name matches.", "REGEX", panel=MERGING)] = None,
    tied: Annotated[
        str,
        Option(
            "Where an adapter makes tied tensors differ: store both, or refuse.",
            "untie|error",
            panel=MERGING,
            among=("untie", "error"),
        ),
    ] = "untie",
    again: Annotated[bool, Option("Merge an adapter that is in the base already.")] = False,
    dtype: Annotated[
        str | None,
        Option(
            "Of the result: bfloat16, float16, float32 or float64; bf16, fp16, fp32.",
            "DTYPE",
            panel=MERGING,
            among=DTYPES,
        ),
    ] = None,
    add: Annotated[
        str | None,
        Option(
            "Add what an adapter holds whole and the base has no place for, where the whole name matches.",
            "REGEX",
            panel=MERGING,
        ),
    ] = None,
    base_as_trained: Annotated[
        bool,
        Option(
            "BASE is the one that PiSSA, OLoRA, CorDA, LoRA-GA or LoftQ changed, saved beside the adapter.",
            panel=MERGING,
        ),
    ] = False,
    tokenizer: Annotated[
        str | None,
        Option(
            "Whose tokenizer and chat template the result has; the adapter's, where it has them and nothing is said.",
            "adapter|base|DIR",
            path=True,
        ),
    ] = None,
    any_base: Annotated[bool, Option("Merge an adapter that was trained on a model of another type.")] = False,
    architecture: Annotated[
        str | None,
        Option(
            "The class of the result, where task type and head do not tell, such as BertForSequenceClassification.",
            "CLASS",
            panel=MERGING,
        ),
    ] = None,
    given: Given | None = None,
    dequantize: Annotated[bool, Option("All of it in 16 bits, and not only what is touched.", panel=CODES)] = False,
    requantize: Annotated[
        bool,
        Option(
            "What is touched is coded again, under the scales that are stored; the report says what survives.",
            panel=CODES,
        ),
    ] = False,
    lossy: Annotated[bool, Option("Even if less than half of the adapter survives that.", panel=CODES)] = False,
    through: Annotated[
        str | None,
        Option(
            "BASE is in 16 bits, the adapter was trained on its NF4 (QLoRA): each linear weight, touched or not, is"
            " what its codes mean.",
            "nf4[:BLOCK][:double]",
            panel=CODES,
        ),
    ] = None,
    trained_on: Annotated[
        Checkpoint | None,
        Option(
            "The adapter was trained on these codes, and BASE is another: the report says what that costs.",
            "QUANTISED",
            ("--trained-on",),
            CODES,
        ),
    ] = None,
    reversible: Annotated[
        bool,
        Option("Write an undo record along, from which unmerge restores BASE, of safetensors, byte for byte."),
    ] = False,
) -> Checkpoint:
    """Merge adapters, LoRA and other kinds, into the base's weights: in float32, rounded once to the base's dtype.

    W + Σ weight * scale * B @ A. Without an adapter it is the base's own LoRA that is merged, which `inject_into` put
    there. `reversible`: as the function of that name.

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

    Of a quantised base, the weights that adapters touch are written in 16 bits, with those that servers fuse with
    them, and the rest stays as it is, byte for byte; `dequantize` writes all of it in 16 bits. `requantize` codes
    what is touched again under the stored scales; a run in which less than half of what was added survives that is
    refused, unless it may be `lossy`. An adapter that was trained on codes of this base, which is in 16 bits, is
    merged `through` them: "nf4", "nf4:64:double" or what else `quantize` takes; each weight of a linear module, touched
    or not, is then what its codes mean. `trained_on` is a quantised checkpoint on which the adapters were trained,
    where the base is another: what that costs is measured, and changes nothing of the result.

    Raises NotPlaced where an adapter tensor has no place, NotSupported where an adapter asks for more than is
    supported, PlanError for an adapter that is in the base already, unless `again`, AdapterError for one that was
    trained on another type of model, unless `any_base`; nothing is ever half applied. Reads no base
    tensor, but of tied ones that are stored twice, of copies of the base that several adapters, or a weighted one,
    hold, `through` double quantisation, and where `trained_on` is given.
    """
    asked = {key: value for key, value in locals().items() if key not in ("checkpoint", "adapter", "weights")}
    if asked.pop("reversible"):
        return replace(merge(checkpoint, adapter, weights, **asked), before=checkpoint)
    if adapter is None:
        return merge(*own_adapter(checkpoint), weights, **asked)
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    weights = _weights(adapters, weights, scale)
    if checkpoint.parts:
        rest = {**asked, "scale": 1.0, "only": None, "except_": None}
        return by_component(checkpoint, adapters, weights, lambda *part: merge(*part, **rest), asked)
    _check_said(tied, given)
    again_as = {**asked, "scale": 1.0}
    if (there := in_original(checkpoint, adapters, lambda one: merge(one, adapters, weights, **again_as))) is not None:
        return there
    how = way(dequantize=dequantize, requantize=requantize, lossy=lossy)
    stored, held = checkpoint, read_quantised(checkpoint)
    check_way(checkpoint, held, how, dtype)
    checkpoint = seen = through_codes(decoded(checkpoint, held), held, through)
    lineage = on_codes(stored, held, adapters, any_base=any_base, through=through)
    lineage += _check_belonging(checkpoint, adapters, again=again, any_base=any_base, any_head=architecture is not None)
    base = _as_adapted(checkpoint, adapters, weights, Selection(names, only, except_), architecture)
    groups = groups_of(base)
    wide = widened(base, groups)
    plain = [_plain(wide, one, base_as_trained) for one in adapters]
    plain = [prepared(one, partial(_places, wide, _called(one, names), given)) for one in plain]
    chosen, wanted = _chosen([_called(one, names) for one in plain], only, except_)
    copied = notes_along(wide, chosen)
    fitted = [_fit(wide, one, given) for one in chosen]
    if any(stored_apart(wide, one.sites) for one in fitted):
        fitted = [_fit(wide, one, given, whole=True) for one in chosen]
    check_crossed(wide, given, [one.crossed for one in fitted])
    for one in plain:
        _check_aimed_at(one, names, wanted)
    merged = _merged_apart(wide, fitted, weights, groups, wanted, add)
    for one in plain:
        check_held(wide, one)
    made = _with_files(merged, base, adapters, groups, tied, tokenizer)
    options = {
        "only": only,
        "except": except_,
        "add": add,
        "tokenizer": tokenizer,
        "architecture": architecture,
        "base_as_trained": base_as_trained or None,
        "given": as_said(given) if given else None,
        "map": [list(rule) for rule in names] or None,
        "quantised": how if held.weights else None,
        "through": through,
    }
    notes = [*lineage, *(note for one in fitted for note in one.notes), *copied, *_notes(base, adapters, plain)]
    done = _step(made, base, adapters, weights, options)
    made = replace(made, history=(*base.history, done), notes=(*made.notes, *notes))
    made = with_costs(made, seen, trained_on)
    made = with_dtype(made, dtype, stored.tensors) if dtype else made
    return replace(settled(made, seen, stored, held, how), survives=0.5 if requantize and not lossy else 0.0)


def _check_said(tied: str, given: Given | None) -> None:
    """Raise SurgeryError for options that say nothing."""
    if tied not in ("untie", "error"):
        raise SurgeryError(f"`{tied}` is no way to merge into tied tensors", help="untie or error")
    check_given(given)


def _check_belonging(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], *, again: bool, any_base: bool, any_head: bool
) -> list[str]:
    """Notes on what the adapters say of their base. Raises PlanError, AdapterError for those that are not this one's,
    are in it, or lost their head.
    """
    check_parts(checkpoint.tensors, checkpoint.path)
    for one in adapters:
        check_parts(one.tensors, one.path)
    check_read(checkpoint, adapters)
    if not again:
        _check_new(checkpoint, adapters)
    notes = check_base(checkpoint, adapters, any_base=any_base)
    for one in adapters if not any_head else ():
        check_head(checkpoint, one)
    return notes


def _as_adapted(
    checkpoint: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    selection: Selection,
    architecture: str | None,
) -> Checkpoint:
    """The base as the adapters found it in training: of their class, with their layers."""
    checkpoint = along(checkpoint, lambda one: as_its_class(one, adapters, weights, selection, architecture))
    return along(checkpoint, lambda one: replicated(one, adapters))


def _with_files(
    merged: Checkpoint,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    groups: tuple[Group, ...],
    tied: str,
    tokenizer: str | None,
) -> Checkpoint:
    """The merged tensors, tied as far as they are still one, with files that say what they are now."""
    left = _left_out(base)
    files = {name: file for name, file in base.files.items() if name not in left}
    merged, edits = narrowed(replace(merged, files=files), base, groups, tied)
    merged = with_tokenizer(with_vocabulary(merged, base), adapters, tokenizer)
    return merged.with_config({**merged.config, **edits}) if edits else merged


def _left_out(base: Checkpoint) -> list[str]:
    """The config of an adapter whose modules are not in the base: transformers would look for them."""
    return [CONFIG] if CONFIG in base.files and not own_names(base) else []


def _notes(base: Checkpoint, adapters: Sequence[Adapter], plain: Sequence[Adapter]) -> list[str]:
    """What a user should know of the adapters, and of files that are not carried."""
    notes = [*of_other_class(base, adapters), *on_changed(base, adapters)]
    notes += [note for one in plain for note in (*one.notes, *notes_on_unadapted(one, base))]
    return [*notes, *(f"left out, since nothing is left to adapt: {name}" for name in _left_out(base))]


def _step(
    made: Checkpoint,
    base: Checkpoint,
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What the history says of this merge: its adapters, what it did, and the options that were given."""
    return {
        "surgery": "merge",
        "base": called(base.path),
        "adapters": [_told(base, a, w) for a, w in zip(adapters, weights, strict=True)],
        "computed": sum(is_computed(t) and t != base.tensors.get(n) for n, t in made.tensors.items()),
        "replaced": len(made.replaced) - len(base.replaced),
        "added": sorted(made.tensors.keys() - base.tensors.keys()),
        **{option: value for option, value in options.items() if value is not None},
    }


def _told(base: Checkpoint, adapter: Adapter, weight: float) -> dict[str, Any]:
    """What the history says of an adapter; its name where it lies in a place of its own."""
    name = {"name": called(adapter.path)} if adapter.inputs and adapter.path != base.path else {}
    told: dict[str, Any] = {**name, "digest": adapter.digest, "weight": weight, "modules": len(adapter.lora)}
    told |= {key: adapter.format[key] for key in TOLD if key in adapter.format}
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


def _plain(base: Checkpoint, adapter: Adapter, base_as_trained: bool) -> Adapter:
    """The adapter as LoRA on modules and parameters, without wrappers. Raises NotSupported for a kind that is not
    merged, AdapterError.
    """
    bare = unwrapped(in_base_names(base, adapter), names_of(base))
    check_kind(bare, base_as_trained=base_as_trained or as_trained(base, adapter))
    if method_of(bare):
        return bare
    plain = as_plain(bare)
    check_numbers(plain)
    return on_attention(by_parameter(plain))


def _merged_apart(
    checkpoint: Checkpoint,
    fitted: Sequence[_Fitted],
    weights: Sequence[float],
    groups: Sequence[Group],
    wanted: Callable[[str], bool],
    add: str | None,
) -> Checkpoint:
    """The checkpoint with the adapters: its fused modules are taken apart where one is on their parts, and fused
    again; and the other way round.
    """
    sites = check_apart([site for one in fitted for site in one.sites])
    joined = stored_apart(checkpoint, sites)
    parted = [site for site in sites if site not in joined]
    if joined:
        check_one_way([one.adapter for one in fitted], joined)
        whole = [one._replace(sites=parted) for one in fitted]
        made = _merged_apart(fuse_at(checkpoint, joined), whole, weights, groups, wanted, add)
        return apart_again(made, joined, checkpoint)
    if not parted:
        return _merged(checkpoint, [one.adapter for one in fitted], weights, groups, wanted, add)
    held = [(one.adapter, sites_held(one.adapter, parted, fused=True)) for one in fitted]
    for adapter, there in held:
        check_divisible(adapter, there)
    adapters = [split_adapter(adapter, sites) if sites else adapter for adapter, sites in held]
    merged = _merged(split_at(checkpoint, parted), adapters, weights, groups, wanted, add)
    return replace(fuse_at(merged, parted), dropped=merged.dropped)


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
    adapters = [without_own_base(checkpoint, one) for one in adapters]
    adapters = without_copies(checkpoint, adapters, weights, groups)
    for one, weight in zip(adapters, weights, strict=True):
        more = _place(checkpoint, one, weight, groups, wanted, may)
        more.dropped = _dropped(one, more, apart=len(adapters) > 1)
        join(placed, more, one.path)
    check_added(add, placed.added, adapters)
    replaced, dropped = replacements(checkpoint.replaced, checkpoint.dropped, _gone(checkpoint, placed))
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **_changed(checkpoint, placed), **placed.added},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(placed.added, _last_shard(checkpoint))},
        replaced=replaced,
        dropped=both(dropped, placed.dropped),
        inputs=(*checkpoint.inputs, *(source for one in adapters for source in sources_of(one))),
        notes=(*checkpoint.notes, *placed.notes, *notes_on_sums(adapters)),
    )


def _dropped(adapter: Adapter, placed: Placed, *, apart: bool) -> dict[str, Tensor]:
    """What is dropped of an adapter, by names that tell it from others where it is one of several (`apart`)."""
    dropped = {**adapter.dropped, **placed.dropped}
    return {f"{adapter.path}: {name}": tensor for name, tensor in dropped.items()} if apart else dropped


def _changed(checkpoint: Checkpoint, placed: Placed) -> dict[str, Tensor]:
    """The tensors of the base that are others now: in each, all that is placed there, under one rounding."""
    changed = dict[str, Tensor]()
    for name in {**placed.whole, **placed.deltas, **placed.turns}:
        base = checkpoint.tensors[name]
        now = turned(placed, name, placed.whole.get(name, base))
        deltas, scaled = placed.deltas.get(name, []), placed.gains.get(name)
        flat = reshape(now, matrix_of(now.shape))
        made = summed(flat, deltas, base.dtype, scaled) if deltas or scaled else in_dtype(flat, base.dtype)
        changed[name] = reshape(made, now.shape)
    return changed


def _gone(checkpoint: Checkpoint, placed: Placed) -> dict[str, Tensor]:
    """The tensors that others have taken the place of."""
    base = checkpoint.tensors
    return {**placed.under, **{name: base[name] for name, new in placed.whole.items() if base[name] != new}}


def _last_shard(checkpoint: Checkpoint) -> str:
    """The shard that new tensors go to."""
    return max((checkpoint.weight_map[name] for name in checkpoint.tensors), key=natural)


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


def _called(adapter: Adapter, rules: Sequence[Rule]) -> Adapter:
    """The adapter with its modules called as the rules say."""
    return with_names(adapter, renamed([*adapter.lora, *adapter.whole], rules)) if rules else adapter


def _check_new(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Raise PlanError for an adapter that was merged before, as the checkpoint's history says, or that is given
    twice.
    """
    given: dict[str, str] = {}
    before = {one.get("digest") for one in merged_in(checkpoint.history)}
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


class _Fitted(NamedTuple):
    """An adapter that fits the base: under its names, on what it stores; the modules to be taken apart for it."""

    adapter: Adapter
    sites: list[Site]
    notes: list[str]
    crossed: str  # how it is across a fusion; "" where it is not


def _fit(checkpoint: Checkpoint, adapter: Adapter, given: Given | None, *, whole: bool = False) -> _Fitted:
    """Fit an adapter to the base, with notes on what it took. Raises what its steps do."""
    adapter, renames = under_base_names(checkpoint, adapter, given)
    adapter, unapplied = as_applied(checkpoint, adapter)
    adapter, experts, single = on_parameters(checkpoint, adapter)
    adapter, sites, crossed = across(checkpoint, adapter, given, whole=whole)
    notes = [note for note in (renames, unapplied, single, crossed) if note]
    return _Fitted(adapter, [*experts, *sites], notes, crossed)


def _places(checkpoint: Checkpoint, adapter: Adapter, given: Given | None) -> tuple[Adapter, Checkpoint]:
    """The adapter under the base's names, and the base with the modules that it was trained on."""
    fitted = _fit(checkpoint, adapter, given)
    joined = stored_apart(checkpoint, fitted.sites)
    parted = [site for site in fitted.sites if site not in joined]
    return fitted.adapter, split_at(fuse_at(checkpoint, joined), parted)


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
    """Find the place of what the adapter has on a module: its weight, what scales that, and its bias."""
    name, bias = f"{module}.weight", f"{module}.bias"
    check_known(checkpoint, adapter, name)
    base = placed.whole.get(name, checkpoint.tensors[name])
    check_computed(checkpoint, adapter, module, base)
    if method := method_of(adapter):
        return place_method(checkpoint, adapter, method, module, weight, placed)
    one = delta(adapter, module, name, base.shape, checkpoint.config)
    placed.deltas.setdefault(name, []).append(one.times(weight))
    if scaled := gain(adapter, module, reshape(base, matrix_of(base.shape)), one, weight):
        placed.gains[name] = scaled
    if more := bias_delta(adapter, module, checkpoint.tensors.get(bias)):
        placed.deltas.setdefault(bias, []).append(more.times(weight))
