"""A recipe -> the lazy checkpoint, or adapter, that it makes. Nothing is written here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, SurgeryError, listed, nearest, series
from ..files.folder import absolute
from ..files.manifest import MANIFEST
from ..files.refs import has_scheme
from ..planning.identity import described
from ..surgeries.blending.mergekit import is_mergekit, recipe_of
from .document import Document, document_of, overridden, read_file, unknown_key
from .kinds import Opened, WrongValue
from .parameters import Signature, signature_of
from .saying import Opening, Running, Value, apply, check_said, opened
from .table import STEPS

_Where = Callable[..., str]


def read_recipe(path: str | os.PathLike[str], said: Sequence[str] = ()) -> Document:
    """The recipe in a file, or in the manifest of an output of surgery, or of its folder; with `said`, each
    "step.option=value", in the place of what it says.

    Raises FormatError where it is none, with the line; WrongValue for what cannot be set.
    """
    path = os.path.join(path, MANIFEST) if os.path.isdir(path) else os.fspath(path)
    content, lines = read_file(path)
    if is_mergekit(content):
        content, lines = recipe_of(content, path), {}
    if isinstance(content, Mapping) and content.get("tool") == "surgery":
        made = {**{key: content.get(key) for key in ("inputs", "history", "version")}, "changed": bool(said)}
        return replace(document_of(overridden(_recipe_in(content, path), said), path, {}), made=made)
    return document_of(overridden(content, said), path, lines)


def from_recipe(
    recipe: str | os.PathLike[str] | Mapping[str, Any],
    said: Sequence[str] = (),
    *,
    workers: int | None = None,
    memory: int | None = None,
) -> Value:
    """What a recipe makes, to be written: of a file, of an output of surgery, or of a mapping.

        write(from_recipe("release.yaml", ["merge.scale=0.5"]), "out")
        write(from_recipe({"source": "base", "steps": [{"drop": {"pattern": r".*\\.bias"}}]}), "out")

    Each "step.option=value" that is `said` stands in the place of what the recipe says. `workers` and `memory` (bytes)
    are for steps that compute at once, as `extract` does. Where the result goes is for `write`: `output` is read by the
    command alone. Raises FormatError with the line of what is wrong, and what the steps raise.
    """
    if isinstance(recipe, Mapping):
        document = document_of(overridden(recipe, said), "recipe", {})
    else:
        document = read_recipe(recipe, said)
    return made_by(document, Running(workers, memory))


def made_by(document: Document, running: Running = Running()) -> Value:  # noqa: B008
    """What the recipe makes, not yet written. Raises what its steps raise, with the line of the step."""
    check(document)
    how = Opening(_place_of(document), running, lambda inner: _nested(inner, document, running))
    value = _run(document, how)
    if document.made:
        value = _as_it_was_made(document, value)
    return value


def check(document: Document) -> None:
    """Raise FormatError for a step that is not known, and for an option that it has not."""
    for i, (name, said) in enumerate(document.steps):
        where = document.where("steps", i)
        if name not in STEPS:
            close = nearest(name, list(STEPS))
            tip = f"nearest are {series(close)}" if close else f"there are {series(sorted(STEPS))}"
            raise FormatError(f"no step is called {name}", where=[where], help=tip)
        signature = signature_of(STEPS[name].function)
        keys = [one.key for one in signature.said]
        for key in said:
            if key not in keys:
                raise unknown_key(key, keys, document.where("steps", i, name, key), f"step {i + 1}, {name},")
        for one in signature.parameters:
            if one.needed and one.key not in said:
                tip = f"{one.key}: {one.option.metavar}"
                raise FormatError(f"{document.called(i)} needs {one.key}", where=[where], help=tip)
        with _told_where(document, i):
            check_said(signature, said, None if i else document.source)


def _run(document: Document, how: Opening) -> Value:
    value = _source(document, how)
    for i, (name, said) in enumerate(document.steps):
        with _told_where(document, i):
            value = apply(STEPS[name].function, value, said, how)
    return value


@contextmanager
def _told_where(document: Document, step: int) -> Iterator[None]:
    """Inside, an error says which step, and where in the recipe it stands."""
    name, said = document.steps[step]
    try:
        yield
    except WrongValue as error:
        key = next((one for one in error.where if one in said), None)
        place = document.where("steps", step, name, key) if key else document.where("steps", step)
        what = f"{document.called(step)}: {key}: {error.what}" if key else f"{document.called(step)}: {error.what}"
        raise FormatError(what, where=[place], help=error.help) from error
    except SurgeryError as error:
        where = [document.where("steps", step), *error.where]
        raise type(error)(f"{document.called(step)}: {error.what}", where=where, help=error.help) from error


def _source(document: Document, how: Opening) -> Any:
    """What flows into the first step."""
    signature = _first(document)
    said = document.source
    many = isinstance(said, list)
    if many and not (signature and isinstance(signature.flowing.kind, Opened) and signature.flowing.kind.many):
        tip = "one source; or a first step that takes several, such as combine"
        raise FormatError(f"{len(said)} sources flow into one", where=[document.where("source")], help=tip)
    kind = signature.flowing.kind if signature else Opened(("Checkpoint", "Adapter"), many=False)
    assert isinstance(kind, Opened)
    try:
        return opened(kind, kind.read(said, signature.flowing.option.metavar if signature else "MODEL"), {}, how)
    except WrongValue as error:
        raise FormatError(error.what, where=[document.where("source")], help=error.help) from error


def _first(document: Document) -> Signature | None:
    return signature_of(STEPS[document.steps[0][0]].function) if document.steps else None


def _nested(said: Mapping[str, Any], document: Document, running: Running) -> Value:
    """What a recipe in the place of a path makes."""
    inner = replace(document_of(said, document.path, {}), made={})
    if inner.output:
        raise FormatError("a recipe within a recipe has no output", where=[document.path], help="leave it away")
    check(inner)
    place = _place_of(document)
    return _run(inner, Opening(place, running, lambda more: _nested(more, document, running)))


# ---------------------------------------------------------------- manifests


def _recipe_in(manifest: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    recipe = manifest.get("recipe")
    if isinstance(recipe, Mapping):
        return recipe
    tip = "outputs of this version have one, but for those that Python made of functions of its own"
    raise FormatError("the manifest holds no recipe", where=[path], help=tip)


def _place_of(document: Document) -> Callable[[str], str]:
    """Where a path leads: as a command would take it; of a manifest, which holds names alone, also beside the
    output.
    """
    if not document.made:
        return str
    beside = os.path.dirname(os.path.dirname(os.path.dirname(absolute(document.path))))

    def place(path: str) -> str:
        there = os.path.join(beside, path)
        return path if has_scheme(path) or os.path.exists(path) or not os.path.exists(there) else there

    return place


def _as_it_was_made(document: Document, value: Value) -> Value:
    """The value, made of the same inputs by the same surgeries as the manifest's output. Raises FormatError."""
    named, there = _described(document.made["inputs"]), _described([described(one) for one in value.inputs])
    if strange := [f"{role} {name}: {file}" for role, name, file in sorted(named) if (role, name, file) not in there]:
        tip = "its recipe holds names, and no folders: say where they are with --set source=PATH, or step.option=PATH"
        raise FormatError("these are not the inputs that the manifest names", where=listed(strange), help=tip)
    done = json.loads(json.dumps(list(value.history)))
    if isinstance(value, Checkpoint) and done != document.made["history"] and not document.made["changed"]:
        tip = f"it was made by version {document.made['version']}; or by Python functions that are no steps"
        raise FormatError("the recipe does not make what the history says", where=[document.path], help=tip)
    return value


def _described(inputs: Any) -> set[tuple[str, str, str]]:
    """Each file of the inputs by role, name, and what tells its content."""
    found = set[tuple[str, str, str]]()
    for one in inputs if isinstance(inputs, list | tuple) else ():
        files = one.get("files") if isinstance(one, Mapping) else None
        for name, facts in files.items() if isinstance(files, Mapping) else ():
            told = facts if isinstance(facts, Mapping) else {}
            found.add((str(one.get("role")), name, str(told.get("sha256") or told.get("git"))))
    return found
