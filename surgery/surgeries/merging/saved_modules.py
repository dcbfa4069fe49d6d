"""What adapters hold whole: trained biases, modules to save, rows of embeddings; and what follows where their
tensors are tied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...adapters.consistency import keeps_ties
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotSupported
from ...files.peft import TOKENS, Adapter
from ...lazy.tensor import Tensor, add, concat, narrow
from ...models.families import is_tied, ties
from ...models.nested_ties import tied_part
from ...names import is_called
from .additions import May, is_within
from .changes import Placed, module_of, place_of
from .tied import Group
from .token_heads import without_biases
from .vocabulary import is_head, is_vocabulary


def place_whole(
    checkpoint: Checkpoint,
    adapter: Adapter,
    weight: float,
    placed: Placed,
    groups: Sequence[Group],
    wanted: Callable[[str], bool],
    may: May,
) -> list[str]:
    """Place what takes the place of a base tensor, or of rows of it; what has no place is returned."""
    saved = adapter.config.get("modules_to_save") or []
    keys, rows, lost = dict[str, str](), dict[str, str](), list[str]()
    for key, value in adapter.whole.items():
        module = module_of(key)
        _check_gathered(checkpoint, adapter, key)
        name = place_of(key)
        check_known(checkpoint, adapter, name)
        if TOKENS.fullmatch(key):
            rows[f"{module}.weight"] = key
        elif name in checkpoint.tensors:
            _check_whole(checkpoint, adapter, name, key, weight)
            placed.whole[name], keys[name] = value, key
        elif may(adapter, name):
            placed.added[name] = value  # a head that the base does not have, such as qa_outputs on a pretrained BERT
        else:
            lost.append(key)
    for group in groups:
        # a module to save has a tensor of its own; any other tensor is the base's, of which there is one
        names = [name for name in group.names if wanted(module_of(name))]
        kept = [name for name in group.kept if wanted(module_of(name))]
        one = kept if kept and keeps_ties(adapter) else [n for n in names if not is_within(module_of(n), saved)]
        _share(adapter, placed, keys, one)
        _share_rows(adapter, placed, rows, group.embedding, kept)
    for name, key in rows.items():
        if name not in checkpoint.tensors:
            lost.append(key)
            continue
        _check_weight(adapter, key, weight)
        base = placed.whole.get(name, checkpoint.tensors[name])
        placed.under |= {adapter.names[k]: adapter.whole[k] for k in keys.values() if adapter.whole[k] == base}
        placed.whole[name] = _with_rows(adapter, key, add(base, [], checkpoint.tensors[name].dtype))
    without_biases(checkpoint, adapter, rows, placed, groups)
    return lost


def share_deltas(adapter: Adapter, placed: Placed, names: Sequence[str]) -> None:
    """Let LoRA on one of several tied tensors be LoRA on all of them."""
    there = [name for name in names if name in placed.deltas]
    if not there:
        return
    if scaled := [name for name in names if name in placed.gains]:
        if scaled != list(names):
            where = [f"{adapter.path}: {name}" for name in scaled]
            raise NotSupported("DoRA on some of the tied tensors that are to stay tied is not supported", where=where)
        return  # each has magnitudes of its own, of rows here and of columns there: the live model has them apart
    first = placed.deltas[there[0]]
    for second in there[1:]:
        for one, other in zip(first, placed.deltas[second], strict=True):
            pairs = zip(one.factors, other.factors, strict=True)
            for pair in pairs:
                _check_same(adapter, list(zip((module_of(there[0]), module_of(second)), pair, strict=True)))
            if other.over(dict(zip(other.factors, one.factors, strict=True)).__getitem__) != one:
                raise _differ(adapter, [module_of(there[0]), module_of(second)])
        module = module_of(second)
        placed.dropped |= {adapter.names[f"{module}.{part}"]: tensor for part, tensor in adapter.lora[module].items()}
    placed.deltas |= dict.fromkeys(names, first)


def check_known(checkpoint: Checkpoint, adapter: Adapter, name: str) -> None:
    config, tensor = checkpoint.config, checkpoint.tensors.get(name)
    text = config.get("text_config")
    entries = {config.get("vocab_size"), text.get("vocab_size") if isinstance(text, Mapping) else None} - {None}
    numbered = any(part.isdigit() for part in name.split(".")[:-2])  # what is in a layer is no embedding of words
    looks = tensor is not None and len(tensor.shape) == 2 and tensor.shape[0] in entries and not numbered
    part, entry = tied_part(config)
    tied = name.startswith(part) if part else is_tied(config) and ties(config) is None
    if (is_head(name.rpartition(".")[0]) or looks) and tied:
        said = f"architectures is {config.get('architectures')!r}"
        where = f"in {entry} of config.json" if entry else "in config.json"
        raise NotSupported(
            "the adapter changes a tied tensor, and how its class keeps tied tensors apart is not known",
            where=[f"{adapter.path}: {name}", f"config.json: {said}"],
            help=(
                "name the model's class under architectures; or untie the base first: store both tensors and set"
                f" tie_word_embeddings to false {where}"
            ),
        )


def _share(adapter: Adapter, placed: Placed, keys: Mapping[str, str], names: Sequence[str]) -> None:
    """Let what replaces one of several tied tensors replace all of them."""
    there = [name for name in names if name in placed.whole]
    for second in there[1:]:
        _check_same(adapter, [(keys[there[0]], placed.whole[there[0]]), (keys[second], placed.whole[second])])
        placed.dropped[adapter.names[keys[second]]] = adapter.whole[keys[second]]
    placed.whole |= {name: placed.whole[there[0]] for name in names if there}


def _share_rows(adapter: Adapter, placed: Placed, rows: dict[str, str], embedding: str, names: Sequence[str]) -> None:
    """Let tokens trained in the input embedding be those of all that is tied to it, unless others were trained
    there.
    """
    first = rows.get(embedding) if embedding in names else None
    if first is None:
        return
    there = [rows[name] for name in names if name != embedding and name in rows]
    if any(_tokens(adapter, key) != _tokens(adapter, first) for key in there):
        return
    for key in there:
        _check_same(adapter, [(first, adapter.whole[first]), (key, adapter.whole[key])])
        placed.dropped[adapter.names[key]] = adapter.whole[key]
    rows |= dict.fromkeys(names, first)


def _check_same(adapter: Adapter, two: Sequence[tuple[str, Tensor]]) -> None:
    from ...evaluation.compare import same

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
    said, module = adapter.config.get("trainable_token_indices"), module_of(key)
    if isinstance(said, Mapping):
        said = next((rows for name, rows in said.items() if is_called(module, [name])), None)
    rows = (
        [row for row in said if isinstance(row, int) and not isinstance(row, bool) and row >= 0]
        if isinstance(said, list)
        else []
    )
    if rows != said or len(set(rows)) != len(rows):
        raise AdapterError(
            f"adapter_config.json does not say which tokens were trained in {module}",
            where=[
                f"{adapter.path}: {adapter.names[key]}",
                f"trainable_token_indices = {adapter.config.get('trainable_token_indices')!r}",
            ],
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


def _check_gathered(checkpoint: Checkpoint, adapter: Adapter, key: str) -> None:
    """Raise NotSupported for a tensor without elements, unless the base's is so, too."""
    base, shape = checkpoint.tensors.get(key), adapter.whole[key].shape
    if adapter.whole[key].size or (base is not None and base.shape == shape):
        return
    where = [f"{adapter.path}: {adapter.names[key]} {shape}"]
    tip = "an ungathered ZeRO-3 or FSDP save looks like this: gather the weights when the adapter is saved"
    raise NotSupported("a tensor that the adapter holds whole has no element", where=where, help=tip)


def _check_whole(checkpoint: Checkpoint, adapter: Adapter, name: str, key: str, weight: float) -> None:
    base, value = checkpoint.tensors[name], adapter.whole[key]
    if base.shape != value.shape and not (is_vocabulary(name) and base.shape[1:] == value.shape[1:]):
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
