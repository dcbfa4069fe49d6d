"""What mergekit's configuration says, in our words: which models, and what `blend` is told. Reads nothing but it.

mergekit takes layers as [first, end), filters as parts of names, and of what is said of a model before what is said of
a slice, and of all. It computes in `dtype`, or in that of the models, and writes `out_dtype`, or the same.
What is not read here is refused by name; what mergekit itself does not look at is left out, and a note says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import NotSupported, SurgeryError, nearest, series, shown
from ...evaluation.blending import METHODS
from ...evaluation.blending.method import Base, Method
from ..cast import SHORT, parsed

TOP = ("merge_method", "base_model", "models", "slices", "dtype", "out_dtype", "parameters", "tokenizer_source")
NOT_READ = {
    "modules": "models of several modules are not read: write models or slices, or blend each component by itself",
    "tokenizer": "tokens are not moved between vocabularies: bring the models to one vocabulary first",
    "chat_template": "the files beside the weights are taken as they are: put the template there yourself",
    "residual_weight": "no method reads it",
    "lora": "merge it first: surgery merge BASE ADAPTER OUT, and name what that wrote",
    "override_architecture": "the architecture is the one that config.json names",
}
NO_EFFECT = ("int8_mask",)  # how mergekit holds a mask, which changes nothing


@dataclass(frozen=True)
class Read:
    """The places of the models, and of the base; what `blend` is told; and what a user should know."""

    models: tuple[str, ...]
    base: str | None
    said: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def is_mergekit(config: object) -> bool:
    """Whether it is a configuration of mergekit, as far as its keys tell."""
    return isinstance(config, Mapping) and "merge_method" in config


def read_mergekit(config: Mapping[str, Any], where: str = "") -> Read:
    """What the configuration says. Raises NotSupported for what is not read, SurgeryError for what is none."""
    at = [where] if where else []
    method = config.get("merge_method")
    if not isinstance(method, str) or method not in METHODS:
        close = nearest(str(method), METHODS)
        raise NotSupported(
            f"merge_method `{method}` is not read", where=at, help=f"there are {series(close or METHODS)}"
        )
    _check_keys(config, TOP, "the configuration", at)
    models, said = _models(config, METHODS[method], at)
    base = _place(config["base_model"], at) if config.get("base_model") else None
    _check_tokenizer(config, models, base, at)
    notes: list[str] = []
    parameters = dict(_parameters(config, METHODS[method], models, notes, at))
    return Read(
        tuple(models),
        base,
        {"method": method, **said, **_dtypes(config, at), **({"parameters": parameters} if parameters else {})},
        tuple(notes),
    )


def recipe_of(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The configuration as a recipe of ours: the models, through one blend; where it goes is still to be said."""
    read = read_mergekit(config, where)
    keys = {"parameters": "parameter", "slices": "slice"}
    said = {keys.get(name, name): value for name, value in read.said.items()}
    return {"source": list(read.models), "steps": [{"blend": {**({"base": read.base} if read.base else {}), **said}}]}


def _check_keys(found: Mapping[str, Any], known: Sequence[str], what: str, at: Sequence[str]) -> None:
    for key, value in found.items():
        if key in NOT_READ and value not in (None, "", {}, []):
            raise NotSupported(f"`{key}` of mergekit is not read", where=[*at, f"in {what}"], help=NOT_READ[key])
        if key not in known and key not in NOT_READ:
            close = nearest(str(key), known)
            raise NotSupported(
                f"`{key}` is nothing that is read of {what}",
                where=at,
                help=f"did you mean {close[0]}?" if close else f"there are {series(known)}",
            )


def _mapping(found: Any, what: str, at: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(found, Mapping):
        raise SurgeryError(f"{what} is {found!r}, and no mapping", where=at)
    return found


def _listed(found: Any, what: str, at: Sequence[str]) -> Sequence[Any]:
    if not isinstance(found, list | tuple) or not found:
        raise SurgeryError(f"{what} is {found!r}, and no list of any", where=at)
    return found


def _place(model: Any, at: Sequence[str]) -> str:
    """A path, or a name on the Hub."""
    if isinstance(model, Mapping):
        _check_keys(model, ("model", "path", "revision"), "a model", at)
        inner = model.get("model", model)
        if isinstance(inner, Mapping):
            path, revision = inner.get("path"), inner.get("revision")
            return _place(f"{path}@{revision}" if revision else path, at)
        return _place(inner, at)
    if not isinstance(model, str) or not model:
        raise SurgeryError(f"a model is {model!r}, and no path or name", where=at)
    if "+" in model:
        raise NotSupported("a LoRA on a model is not read", where=[*at, model], help=NOT_READ["lora"])
    return model


def _models(config: Mapping[str, Any], row: Method, at: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """The models, each once, and the slices."""
    given = [key for key in ("models", "slices") if config.get(key)]
    if len(given) != 1:
        raise SurgeryError("one of models and slices must be there, and not both", where=at)
    base = _place(config["base_model"], at) if config.get("base_model") else None
    if given == ["models"]:
        entries = [_mapping(one, "a model", at) for one in _listed(config["models"], "models", at)]
        for one in entries:
            _check_keys(one, ("model", "parameters"), "a model", at)
        models = [_place(one.get("model"), at) for one in entries]
        if len(set(models)) < len(models):
            raise SurgeryError("a model is named twice", where=[*at, *models])
        return [*models, *([base] if base and row.base is Base.NONE and base not in models else [])], {}
    found, texts = list[str](), list[str]()
    for one in _slices(config, at):
        parts = []
        for source in _sources(one, at):
            place = _place(source.get("model"), at)
            if place not in found:
                found.append(place)
            first, end = _range(source, at)
            parts.append(f"{found.index(place) + 1}:{first}-{end - 1}")
        texts.append("+".join(parts))
    return found, {"slices": texts}


def _slices(config: Mapping[str, Any], at: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for one in _listed(config["slices"], "slices", at):
        found = _mapping(one, "a slice", at)
        _check_keys(found, ("sources", "parameters", "base_model"), "a slice", at)
        if found.get("base_model") and found["base_model"] != config.get("base_model"):
            raise NotSupported(
                "`base_model` of a slice is not read where it is another than that of all", where=at, help="name one"
            )
        yield found


def _sources(one: Mapping[str, Any], at: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    for source in _listed(one.get("sources"), "the sources of a slice", at):
        found = _mapping(source, "a source", at)
        _check_keys(found, ("model", "layer_range", "parameters"), "a source", at)
        yield found


def _range(source: Mapping[str, Any], at: Sequence[str]) -> tuple[int, int]:
    match source.get("layer_range"):
        case [int(first), int(end)] if 0 <= first < end:
            return first, end
    raise SurgeryError(
        f"layer_range is {source.get('layer_range')!r}", where=at, help="[first, end], layers from 0, the end not of it"
    )


def _check_tokenizer(config: Mapping[str, Any], models: Sequence[str], base: str | None, at: Sequence[str]) -> None:
    """What is taken is the tokenizer of the base, or of the first model."""
    source = config.get("tokenizer_source")
    if not source:
        return
    donor = base or models[0]
    if source != donor and not (source == "base" and base):
        raise NotSupported(
            f"tokenizer_source `{source}` is not read",
            where=at,
            help=f"the tokenizer is that of {donor}, and all models must have its tokens: "
            "bring them to one vocabulary first",
        )


def _dtypes(config: Mapping[str, Any], at: Sequence[str]) -> dict[str, Any]:
    """In what is computed, and what is written."""
    said = (str(config.get(key) or "") for key in ("dtype", "out_dtype"))
    compute, out = (SHORT.get(one, one) for one in said)
    for one in (compute, out):
        if one:
            parsed(one)
    return {"compute": compute or "stored", **({"dtype": out or compute} if out or compute else {})}


def _parameters(
    config: Mapping[str, Any], row: Method, models: Sequence[str], notes: list[str], at: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """All that is said of parameters, what is said of a model first: (key, value) of `blend`."""
    own, sliced = list[tuple[str, Any]](), list[tuple[str, Any]]()
    for one in config.get("models") or ():
        own += _keyed(one.get("parameters"), row.each, f"@{models.index(_place(one['model'], at)) + 1}", notes, at)
    for number, one in enumerate(_slices(config, at) if config.get("slices") else (), 1):
        for source in _sources(one, at):
            model = models.index(_place(source["model"], at)) + 1
            own += _keyed(source.get("parameters"), row.each, f"@{model}#{number}", notes, at)
        sliced += _keyed(one.get("parameters"), {**row.each, **row.shared}, f"#{number}", notes, at)
    done = set[str]()
    for key, value in (*own, *sliced, *_keyed(config.get("parameters"), {**row.each, **row.shared}, "", notes, at)):
        if key not in done:
            done.add(key)
            yield key, value


def _keyed(
    said: Any, known: Iterable[str], whose: str, notes: list[str], at: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """The parameters of one place in the configuration."""
    anywhere = {name for row in METHODS.values() for name in (*row.each, *row.shared)}
    for name, setting in _mapping(said or {}, "parameters", at).items():
        if name in known:
            for pattern, value in _conditions(name, setting, at):
                yield f"{name}{whose}{pattern}", value
        elif name in anywhere or name in NO_EFFECT:
            notes.append(f"`{name}` changes nothing where it is said, and mergekit does not look at it there")
        else:
            close = nearest(str(name), anywhere)
            tip = f"did you mean {close[0]}?" if close else f"there are {series(known)}"
            raise NotSupported(f"the parameter `{name}` is not read", where=at, help=tip)


def _conditions(name: str, setting: Any, at: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(":pattern" or "", value) of a setting: a number, a gradient, or those of filters."""
    entries = [setting] if isinstance(setting, Mapping) else setting
    if isinstance(entries, list) and entries and all(isinstance(one, Mapping) for one in entries):
        for one in entries:
            _check_keys(one, ("filter", "value"), f"`{name}`", at)
            where = one.get("filter")
            if not isinstance(where, str | None):
                raise SurgeryError(f"a filter of `{name}` is {shown(where)}, and no part of a name", where=at)
            if value := _value(name, one.get("value"), at):
                yield "" if where in (None, "*") else f":{re.escape(where)}", value
    elif value := _value(name, setting, at):
        yield "", value


def _value(name: str, value: Any, at: Sequence[str]) -> str:
    """A number, or those of a gradient, as text; nothing for an empty gradient."""
    numbers = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, bool | int | float | str) for one in numbers):
        raise SurgeryError(f"`{name}` is {value!r}, and no number, gradient or list of filters", where=at)
    return ",".join(str(one).lower() if isinstance(one, bool) else str(one) for one in numbers)
