"""Merge adapters into a base."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..adapters.dora import gain
from ..adapters.experts import by_parameter
from ..adapters.fused import split_adapter
from ..adapters.lora import bias_delta, check_config, delta
from ..checkpoint import Checkpoint
from ..dtypes import ARITHMETIC
from ..errors import AdapterError, NothingMatched, NotSupported, PlanError, SurgeryError, listed
from ..families import EMBEDDINGS, HEADS, VOCABULARY_BIASES, is_tied, ties
from ..folder import folder_at
from ..formats.peft import TOKENS, Adapter
from ..fused.row import Site
from ..names import compiled, is_called, natural, select
from ..tensor import File, Gain, LowRank, Tensor, add, concat, is_computed, narrow
from .places import EXPERTS, check_apart, on_parameters, under_base_names, with_names
from .rename import Rule, renamed
from .split import fuse_at, fused_in, sites_held, split_at, split_in
from .tied import Group, groups_of, narrowed, widened
from .unplaced import not_placed

# What a tokenizer is made of: an adapter of another vocabulary brings its own.
TOKENIZER = (
    "tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt "
    "spiece.model tokenizer.model sentencepiece.bpe.model chat_template.jinja chat_template.json"
).split()


@dataclass
class _Placed:
    """What the adapters do to the base: deltas by tensor, tensors that take another's place, tensors that are new."""

    deltas: dict[str, list[LowRank]] = field(default_factory=dict)
    gains: dict[str, Gain] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    added: dict[str, Tensor] = field(default_factory=dict)
    under: dict[str, Tensor] = field(default_factory=dict)  # what adapters hold whole and replace rows of, by name in the file
    dropped: dict[str, Tensor] = field(default_factory=dict)  # second copies of what is placed already


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
) -> Checkpoint:
    """The base with the adapters in its weights: W + Σ weight * scale * B @ A, in float32, rounded once to W's dtype.

    Several adapters are summed before the one rounding, without cross-terms; `weights` defaults to 1 each. `names` are
    rules (regular expression, replacement) that turn the adapters' module names into the base's. Modules to save, trained
    biases and trained tokens take the place of the base's. `scale` is a factor for all weights. `only` and `except_` are
    regular expressions over whole module names of the adapters: what they leave out is dropped by name.

    An adapter on one of two tied tensors makes them differ: each is stored under its own name, as the live model has them
    (`tied="untie"`), or NotSupported is raised (`tied="error"`).

    Raises NotPlaced where an adapter tensor has no place, NotSupported where an adapter asks for more than is supported,
    PlanError for an adapter that is in the base already, unless `again`; nothing is ever half applied. Reads no base
    tensor, but of tied ones that are stored twice.
    """
    adapters = [adapter] if isinstance(adapter, Adapter) else list(adapter)
    if weights is None:
        weights = [1.0] * len(adapters)
    if not adapters or len(weights) != len(adapters):
        raise SurgeryError(f"{len(weights)} weights for {len(adapters)} adapters", help="give one weight for each adapter")
    weights = [weight * scale for weight in weights]
    if tied not in ("untie", "error"):
        raise SurgeryError(f"`{tied}` is no way to merge into tied tensors", help="untie or error")
    if not all(map(math.isfinite, weights)):
        raise SurgeryError(f"the weights {', '.join(map(str, weights))} are not all finite numbers", help="give numbers, such as 0.7,0.3")
    for one in adapters:
        check_config(one)
    if not again:
        _check_new(checkpoint, adapters)
    groups = groups_of(checkpoint)
    base, checkpoint = checkpoint, widened(checkpoint, groups)
    chosen, wanted = _chosen([_called(by_parameter(one), names) for one in adapters], only, except_)
    fitting = [_fitted(checkpoint, one) for one in chosen]
    parted = check_apart([site for _, sites, _ in fitting for site in sites])
    fitted = [split_adapter(one, held) if (held := sites_held(one, parted, fused=True)) else one for one, _, _ in fitting]
    merged = _merged(split_at(checkpoint, parted) if parted else checkpoint, fitted, weights, groups, wanted)
    if parted:
        merged = replace(fuse_at(merged, parted), dropped=merged.dropped)
    merged, edits = narrowed(replace(merged, files=base.files), base, groups, tied)
    merged = _with_vocabulary(merged, base, fitted)
    if edits:
        merged = merged.with_config({**merged.config, **edits})
    added = sorted(merged.tensors.keys() - base.tensors.keys())
    step = {
        "surgery": "merge",
        "adapters": [{"digest": a.digest, "weight": w, "modules": len(a.lora)} for a, w in zip(adapters, weights, strict=True)],
        "computed": sum(is_computed(t) and t != base.tensors.get(n) for n, t in merged.tensors.items()),
        "replaced": len(merged.replaced) - len(base.replaced),
        "added": added,
        **{key: value for key, value in (("only", only), ("except", except_)) if value is not None},
    }
    said = [note for *_, notes in fitting for note in notes if note]
    return replace(merged, history=(*checkpoint.history, step), notes=(*merged.notes, *said))


def _merged(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float], groups: Sequence[Group], wanted: Callable[[str], bool]
) -> Checkpoint:
    """The checkpoint with adapters on modules that it has."""
    placed = _Placed()
    for one, weight in zip(adapters, weights, strict=True):
        more = _place(checkpoint, one, weight, groups, wanted)
        more.dropped = {(f"{one.path}: {n}" if len(adapters) > 1 else n): t for n, t in {**one.dropped, **more.dropped}.items()}
        _join(placed, more)
    tensors: dict[str, Tensor] = dict(checkpoint.tensors)
    for name in {**placed.whole, **placed.deltas}:
        base = checkpoint.tensors[name]
        tensors[name] = add(placed.whole.get(name, base), placed.deltas.get(name, []), base.dtype, placed.gains.get(name))
    shard = checkpoint.weight_map[max(checkpoint.tensors, key=lambda n: natural(checkpoint.weight_map[n]))]
    return replace(
        checkpoint,
        tensors={**tensors, **placed.added},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(placed.added, shard)},
        replaced={**checkpoint.replaced, **placed.under, **{n: checkpoint.tensors[n] for n in placed.whole}},
        dropped={**checkpoint.dropped, **placed.dropped},
        notes=(*checkpoint.notes, *(note for one in adapters for note in _strangers(checkpoint, one))),
        inputs=(*checkpoint.inputs, *(source for one in adapters for source in one.inputs)),
    )


def _called(adapter: Adapter, rules: Sequence[Rule]) -> Adapter:
    """The adapter with its modules called as the rules say."""
    return with_names(adapter, renamed([*adapter.lora, *adapter.whole], rules)) if rules else adapter


def _check_new(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Raise PlanError for an adapter that was merged before, as the checkpoint's history says, or that is given twice."""
    before = {one.get("digest") for step in checkpoint.history if step.get("surgery") == "merge" for one in step.get("adapters", ())}
    for one in adapters:
        if one.inputs and one.digest in before:
            tip = "its delta would be added twice; if that is meant: --again, in Python again=True"
            raise PlanError("the adapter is merged into this base already", where=[one.path, checkpoint.path], help=tip)
        before.add(one.digest)


def _chosen(adapters: Sequence[Adapter], only: str | None, except_: str | None) -> tuple[list[Adapter], Callable[[str], bool]]:
    """The adapters without the modules that the patterns leave out, dropped by name; and whether they leave a module in."""
    modules = sorted({module for one in adapters for module in (*one.lora, *map(_module, one.whole))}, key=natural)
    kept = set(select(modules, only) if only is not None else modules)
    gone = set(select(modules, except_)) if except_ is not None else set[str]()
    if not kept - gone:
        raise NothingMatched("the patterns leave nothing to merge", help=f"modules are such as {', '.join(listed(modules, 3))}")
    rules = [compiled(pattern) if pattern is not None else None for pattern in (only, except_)]

    def wanted(module: str) -> bool:
        return (rules[0] is None or bool(rules[0].fullmatch(module))) and not (rules[1] and rules[1].fullmatch(module))

    return [_restricted(one, wanted) for one in adapters], wanted


def _restricted(adapter: Adapter, wanted: Callable[[str], bool]) -> Adapter:
    """The adapter on the wanted modules; the rest is dropped by name."""
    left = {f"{m}.{part}": t for m, parts in adapter.lora.items() if not wanted(m) for part, t in parts.items()}
    left |= {name: t for name, t in adapter.whole.items() if not wanted(_module(name))}
    return replace(
        adapter,
        lora={module: parts for module, parts in adapter.lora.items() if wanted(module)},
        whole={name: tensor for name, tensor in adapter.whole.items() if wanted(_module(name))},
        dropped={**adapter.dropped, **{adapter.names[key]: tensor for key, tensor in left.items()}},
    )


def _module(name: str) -> str:
    """The module of a tensor that an adapter holds whole, or of the rows that it trained."""
    found = TOKENS.fullmatch(name)
    return found["module"] if found else name.rpartition(".")[0].removesuffix(".token_adapter")


def _fitted(checkpoint: Checkpoint, adapter: Adapter) -> tuple[Adapter, list[Site], list[str]]:
    """An adapter that fits the base: under its names, on what it stores; the modules to be taken apart for it; notes on it."""
    adapter, renames = under_base_names(checkpoint, adapter)
    adapter, experts, single = on_parameters(checkpoint, adapter)
    adapter, sites, across = _across(checkpoint, adapter)
    return adapter, [*experts, *sites], [renames, single, across]


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
    if held := sites_held(adapter, fused_in(checkpoint), fused=False) or sites_held(adapter, fused_in(checkpoint, EXPERTS), fused=False):
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
    if both := (placed.gains.keys() & more.deltas.keys()) | (placed.deltas.keys() & more.gains.keys()):
        tip = "merge them one after another, in the order that you mean"
        raise PlanError("a DoRA adapter scales a tensor that another one adds to", where=listed(sorted(both)), help=tip)
    placed.whole |= more.whole
    placed.gains |= more.gains
    placed.added |= more.added
    placed.under |= more.under
    placed.dropped |= more.dropped
    for name, deltas in more.deltas.items():
        placed.deltas.setdefault(name, []).extend(deltas)


def _place(checkpoint: Checkpoint, adapter: Adapter, weight: float, groups: Sequence[Group], wanted: Callable[[str], bool]) -> _Placed:
    """Find each adapter tensor's place in the base, or fail for all that have none."""
    placed, lost = _Placed(), list[str]()
    unplaced = _place_whole(checkpoint, adapter, weight, placed, groups, wanted)
    for name, one in adapter.deltas.items():
        placed.deltas.setdefault(name, []).append(LowRank(one.left, one.right, one.scale * weight))
    for module in sorted(adapter.lora, key=natural):
        name = f"{module}.weight"
        if name not in checkpoint.tensors:
            lost.append(module)
            continue
        _check_known(checkpoint, adapter, name)
        base = checkpoint.tensors[name]
        if base.dtype not in ARITHMETIC:
            raise NotSupported(
                f"cannot compute on {base.dtype} tensors",
                where=[f"{adapter.path}: {module}", f"base: {name}"],
                help="dequantise the base first; F16, BF16, F32 and F64 are computed",
            )
        shape = placed.whole.get(name, base).shape
        one = delta(adapter, module, name, shape, checkpoint.config)
        placed.deltas.setdefault(name, []).append(LowRank(one.left, one.right, one.scale * weight))
        if scaled := gain(adapter, module, base, one, weight):
            placed.gains[name] = scaled
        bias = f"{module}.bias"
        if more := bias_delta(adapter, module, checkpoint.tensors.get(bias)):
            placed.deltas.setdefault(bias, []).append(LowRank(more.left, None, more.scale * weight))
    if lost or unplaced:
        raise not_placed(checkpoint, adapter, [*lost, *unplaced])
    if adapter.config.get("ensure_weight_tying"):
        for group in groups:
            _share_deltas(adapter, placed, [name for name in group.names if wanted(_module(name))])
    return placed


def _place_whole(
    checkpoint: Checkpoint,
    adapter: Adapter,
    weight: float,
    placed: _Placed,
    groups: Sequence[Group],
    wanted: Callable[[str], bool],
) -> list[str]:
    """Place what takes the place of a base tensor, or of rows of it; what has no place is returned."""
    saved = adapter.config.get("modules_to_save") or []
    keys, rows, lost = dict[str, str](), dict[str, str](), list[str]()
    for key, value in adapter.whole.items():
        module = _module(key)
        name = f"{module}.{key.rpartition('.')[2]}"
        _check_known(checkpoint, adapter, name)
        if TOKENS.fullmatch(key):
            rows[f"{module}.weight"] = key
        elif name in checkpoint.tensors:
            _check_whole(checkpoint, adapter, name, key, weight)
            placed.whole[name], keys[name] = value, key
        elif is_called(module, saved) and not _has_module(checkpoint, module):
            placed.added[name] = value  # a head that the base does not have, such as qa_outputs on a pretrained BERT
        else:
            lost.append(key)
    for group in groups:
        # a module to save has a tensor of its own; any other tensor is the base's, of which there is one
        names = [name for name in group.names if wanted(_module(name))]
        one = names if adapter.config.get("ensure_weight_tying") else [n for n in names if not is_called(_module(n), saved)]
        _share(adapter, placed, keys, one)
        _share_rows(adapter, placed, rows, names)
    for name, key in rows.items():
        if name not in checkpoint.tensors:
            lost.append(key)
            continue
        if f"{_module(name)}.bias" in checkpoint.tensors:
            where = [f"{adapter.path}: {adapter.names[key]}", f"base: {_module(name)}.bias"]
            tip = "PEFT computes such a head without its bias, in training too: no checkpoint holds that; leave it out with --except"
            raise NotSupported("the adapter trained tokens in a head that has a bias", where=where, help=tip)
        _check_weight(adapter, key, weight)
        base = placed.whole.get(name, checkpoint.tensors[name])
        placed.under |= {adapter.names[k]: adapter.whole[k] for k in keys.values() if adapter.whole[k] == base}
        placed.whole[name] = _with_rows(adapter, key, add(base, [], checkpoint.tensors[name].dtype))
    return lost


def _share(adapter: Adapter, placed: _Placed, keys: Mapping[str, str], names: Sequence[str]) -> None:
    """Let what replaces one of several tied tensors replace all of them."""
    there = [name for name in names if name in placed.whole]
    for second in there[1:]:
        _check_same(adapter, [(keys[there[0]], placed.whole[there[0]]), (keys[second], placed.whole[second])])
        placed.dropped[adapter.names[keys[second]]] = adapter.whole[keys[second]]
    placed.whole |= {name: placed.whole[there[0]] for name in names if there}


def _share_rows(adapter: Adapter, placed: _Placed, rows: dict[str, str], names: Sequence[str]) -> None:
    """Let tokens trained in the input embedding be those of all that is tied to it, unless others were trained there."""
    first = rows.get(names[0]) if names else None
    if first is None:
        return
    there = [rows[name] for name in names[1:] if name in rows]
    if any(_tokens(adapter, key) != _tokens(adapter, first) for key in there):
        return
    for key in there:
        _check_same(adapter, [(first, adapter.whole[first]), (key, adapter.whole[key])])
        placed.dropped[adapter.names[key]] = adapter.whole[key]
    rows |= dict.fromkeys(names, first)


def _share_deltas(adapter: Adapter, placed: _Placed, names: Sequence[str]) -> None:
    """Let LoRA on one of several tied tensors be LoRA on all of them."""
    there = [name for name in names if name in placed.deltas]
    if not there:
        return
    if scaled := [name for name in names if name in placed.gains]:
        raise NotSupported("DoRA on tied tensors that stay tied is not supported", where=[f"{adapter.path}: {name}" for name in scaled])
    first = placed.deltas[there[0]]
    for second in there[1:]:
        for one, other in zip(first, placed.deltas[second], strict=True):
            pairs = zip(one.factors, other.factors, strict=True)
            for pair in pairs:
                _check_same(adapter, list(zip((_module(there[0]), _module(second)), pair, strict=True)))
            if one.scale != other.scale:
                raise _differ(adapter, [_module(there[0]), _module(second)])
        module = _module(second)
        placed.dropped |= {adapter.names[f"{module}.{part}"]: tensor for part, tensor in adapter.lora[module].items()}
    placed.deltas |= dict.fromkeys(names, first)


def _check_same(adapter: Adapter, two: Sequence[tuple[str, Tensor]]) -> None:
    from ..compare import same

    (one, first), (other, second) = two
    if not same(first, second):
        raise _differ(adapter, [one, other])


def _differ(adapter: Adapter, names: Sequence[str]) -> AdapterError:
    return AdapterError(
        "the adapter holds two different values of tensors that are tied in the base",
        where=[f"{adapter.path}: {name}" for name in names],
        help="the adapter was trained on a base that has them apart: merge it into that one",
    )


def _tokens(adapter: Adapter, key: str) -> list[int]:
    """The rows of the embedding that `key` holds. Raises AdapterError unless they are different whole numbers."""
    said, module = adapter.config.get("trainable_token_indices"), _module(key)
    if isinstance(said, Mapping):
        said = next((rows for name, rows in said.items() if is_called(module, [name])), None)
    rows = [row for row in said if isinstance(row, int) and not isinstance(row, bool) and row >= 0] if isinstance(said, list) else []
    if rows != said or len(set(rows)) != len(rows):
        raise AdapterError(
            f"adapter_config.json does not say which tokens were trained in {module}",
            where=[f"{adapter.path}: {adapter.names[key]}", f"trainable_token_indices = {adapter.config.get('trainable_token_indices')!r}"],
            help="restore the file from the training",
        )
    return rows


def _with_rows(adapter: Adapter, key: str, base: Tensor) -> Tensor:
    """The embedding with the trained rows in their places: movement alone, where the dtypes agree."""
    rows, new = _tokens(adapter, key), adapter.whole[key]
    if new.shape != (len(rows), *base.shape[1:]) or max(rows, default=0) >= base.shape[0]:
        raise AdapterError(
            f"{len(rows)} trained tokens of {new.shape} do not fit the base's {base.shape}",
            where=[f"{adapter.path}: {adapter.names[key]}", f"the last token is {max(rows, default=0)}"],
            help="the adapter belongs to another base, or to a resized one",
        )
    new, at, parts = add(new, [], base.dtype), 0, list[Tensor]()
    for row, place in sorted(zip(rows, range(len(rows)), strict=True)):
        parts += [narrow(base, 0, at, row - at)] if row > at else []
        parts.append(narrow(new, 0, place, 1))
        at = row + 1
    parts += [narrow(base, 0, at, base.shape[0] - at)] if at < base.shape[0] else []
    return concat(parts, 0)


def _with_vocabulary(checkpoint: Checkpoint, base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """The checkpoint with config.json and tokenizer of a vocabulary that adapters resized, where they did."""
    both = checkpoint.tensors.keys() & base.tensors.keys()
    resized = {n: checkpoint.tensors[n].shape[0] for n in both if checkpoint.tensors[n].shape != base.tensors[n].shape}
    if not resized:
        return checkpoint
    before = {base.tensors[name].shape[0] for name in resized}
    left = [n for n, t in checkpoint.tensors.items() if _is_vocabulary(n) and t.shape[:1] not in {(size,) for size in resized.values()}]
    left = [n for n in left if checkpoint.tensors[n].shape[0] in before]
    if left or len({*resized.values()}) > 1:
        raise AdapterError(
            "the adapter resizes a part of the vocabulary's tensors, and not the others",
            where=[f"{n}: {checkpoint.tensors[n].shape[0]} rows" for n in sorted([*resized, *left], key=natural)],
            help="save the adapter with save_embedding_layers=True, so that embedding and head are both in it",
        )
    size = next(iter(resized.values()))
    checkpoint = checkpoint.with_config(_resized(base.config, size))
    files: dict[str, File | bytes] = dict(checkpoint.files)
    whose = [one.path for one in adapters if any(f"{_module(key)}.weight" in resized for key in one.whole)]
    folders = [folder for path in whose if (folder := folder_at(path))]
    found = {name: folder.file(name) for folder in folders for name in TOKENIZER if folder.has(name)}
    files |= found
    brought = f"the tokenizer is the adapter's: {', '.join(found)}" if found else "the adapter has no tokenizer: the base's is carried"
    note = f"the vocabulary has {size} entries, as the adapter's tensors, and config.json says so; {brought}"
    return replace(checkpoint, files=files, notes=(*checkpoint.notes, note))


def _resized(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """config.json with another vocab_size, wherever it says one of the text model."""
    text = config.get("text_config")
    nested = isinstance(text, Mapping) and "vocab_size" in text
    made = dict(config) | ({"text_config": {**text, "vocab_size": size}} if nested and isinstance(text, Mapping) else {})
    return made | ({"vocab_size": size} if "vocab_size" in config or not nested else {})


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


def _is_vocabulary(name: str) -> bool:
    """Whether the tensor has an entry for each word."""
    return _is_head(name.rpartition(".")[0]) or name in VOCABULARY_BIASES


def _check_known(checkpoint: Checkpoint, adapter: Adapter, name: str) -> None:
    if _is_head(name.rpartition(".")[0]) and is_tied(checkpoint.config) and ties(checkpoint.config) is None:
        raise NotSupported(
            "the adapter changes a tied tensor, and how its class keeps tied tensors apart is not known",
            where=[f"{adapter.path}: {name}", f"config.json: architectures is {checkpoint.config.get('architectures')!r}"],
            help="untie the base first: store both tensors and set tie_word_embeddings to false",
        )


def _check_whole(checkpoint: Checkpoint, adapter: Adapter, name: str, key: str, weight: float) -> None:
    base, value = checkpoint.tensors[name], adapter.whole[key]
    if base.shape != value.shape and not (_is_vocabulary(name) and base.shape[1:] == value.shape[1:]):
        raise AdapterError(
            f"the adapter's tensor is {value.shape}, the base's {base.shape}",
            where=[f"{adapter.path}: {adapter.names[key]}", f"base: {name}"],
            help="the adapter belongs to another base",
        )
    _check_weight(adapter, key, weight)


def _check_weight(adapter: Adapter, key: str, weight: float) -> None:
    if weight != 1:
        raise NotSupported(
            "an adapter that replaces whole tensors can only be merged with weight 1",
            where=[f"{adapter.path}: {adapter.names[key]}"],
            help="leave the weight at 1, or leave the module out with --except",
        )
