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
from ..files.folder import PathLike, absolute
from ..files.manifest import MANIFEST, Manifest, manifest_of
from ..files.refs import has_scheme, is_ref
from ..opened import takes_opened
from ..planning.digests import digests_of
from ..planning.identity import described
from ..surgeries.blending.mergekit import is_mergekit, recipe_of
from .document import Document, document_of, overridden, read_file, unknown_key
from .kinds import Opened, WrongValue
from .parameters import Signature, signature_of
from .saying import Opening, Running, Value, apply, check_said, opened
from .table import STEPS

# Commands that are no steps, and how a recipe says what they do.
OF_OUTPUTS = {
    "reshard": "a recipe says it of its output: output: {output: DIR, max-shard-size: 5GB}",
    "push": "a recipe says it of its output: output: hf://org/name",
}
_NAMES = ("base", "name", "tuned", "adapter", "other")  # by which a history calls inputs


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
        made = manifest_of(content, path)
        changed = any(not one.startswith(("source=", "output")) for one in said)
        return replace(document_of(overridden(_recipe_in(made, path), said), path, {}), made=made, changed=changed)
    return document_of(overridden(content, said), path, lines)


@takes_opened
def from_recipe(
    recipe: PathLike | Mapping[str, Any],
    said: Sequence[str] = (),
    *,
    workers: int | None = None,
    memory: int | None = None,
) -> Value:
    """What a recipe makes, to be written: of a file, of an output of surgery, or of a mapping.

        write(from_recipe("release.yaml", ["merge.scale=0.5"]), "out")
        write(from_recipe({"source": "base", "steps": [{"drop": {"pattern": r".*\\.bias"}}]}), "out")

    Each "step.option=value" that is `said` stands in the place of what the recipe says. `workers` and `memory` (bytes)
    are for steps that compute at once, as `extract` does. Where the result goes, and in what shards, is for `write`:
    `output` is read by the command alone, and a note says so. Raises FormatError with the line of what is wrong, and
    what the steps raise.
    """
    if isinstance(recipe, Mapping):
        document = document_of(overridden(recipe, said), "recipe", {})
    else:
        document = read_recipe(recipe, said)
    return _noted(made_by(document, Running(workers, memory)), document)


def _noted(value: Value, document: Document) -> Value:
    """With a note on how the recipe wants its output, which `write` does not know."""
    options = [key for key in document.output if key != "output"]
    if not options or not isinstance(value, Checkpoint):
        return value
    note = f"the recipe's output says {series(options)}: surgery run reads it, and write takes it as arguments"
    return replace(value, notes=(*value.notes, note))


def made_by(document: Document, running: Running = Running()) -> Value:  # noqa: B008
    """What the recipe makes, not yet written. Raises what its steps raise, with the line of the step."""
    check(document)
    how = Opening(_place_of(document), running, lambda inner: _nested(inner, document, running))
    value = _run(document, how)
    return value if document.made is None else _as_it_was_made(document.made, document, value)


def check(document: Document) -> None:
    """Raise FormatError for a step that is not known, and for an option that it has not."""
    for i, (name, said) in enumerate(document.steps):
        where = document.where("steps", i)
        if name not in STEPS:
            close = nearest(name, list(STEPS))
            tip = f"nearest are {series(close)}" if close else f"there are {series(sorted(STEPS))}"
            raise FormatError(f"no step is called {name}", where=[where], help=OF_OUTPUTS.get(name, tip))
        signature = signature_of(STEPS[name].function)
        keys = [one.key for one in signature.said]
        for key in said:
            if key not in keys:
                place, step = document.where("steps", i, name, key), f"step {i + 1}, {name},"
                raise unknown_key(key, keys, place, step, signature.flowing.key)
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
    inner = document_of(said, document.path, {})
    if inner.output:
        raise FormatError("a recipe within a recipe has no output", where=[document.path], help="leave it away")
    check(inner)
    place = _place_of(document)
    return _run(inner, Opening(place, running, lambda more: _nested(more, document, running)))


# ---------------------------------------------------------------- manifests


def _recipe_in(manifest: Manifest, path: str) -> Mapping[str, Any]:
    if manifest.recipe:
        return manifest.recipe
    tip = "outputs of this version have one, but for those that Python made of functions of its own"
    raise FormatError("the manifest holds no recipe", where=[path], help=tip)


def _place_of(document: Document) -> Callable[[str], str]:
    """Where a path leads: as a command would take it; of a manifest, which holds names alone, also beside the
    output.
    """
    if document.made is None:
        return str
    beside = os.path.dirname(os.path.dirname(os.path.dirname(absolute(document.path))))

    def place(path: str) -> str:
        there = os.path.join(beside, path)
        if has_scheme(path) or os.path.exists(path) or is_ref(path):
            return path
        if not os.path.exists(there):
            tip = "say where it is: --set source=PATH, --set 'source=[PATH, PATH]' or --set step.option=PATH"
            what = "an input of the recipe is neither here nor beside the output"
            raise FormatError(what, where=[path, there], help=tip)
        return there

    return place


def _as_it_was_made(made: Manifest, document: Document, value: Value) -> Value:
    """The value, made of the same inputs by the same surgeries as the manifest's output. Raises FormatError."""
    named, there = _described(made.inputs), _described([described(one) for one in value.inputs])
    if strange := [
        f"{place[0]} {place[1]}: it was {was}, and is {there.get(place, 'not here')}"
        for place, was in named.items()
        if there.get(place) != was
    ]:
        tip = "its recipe holds names, and no folders: say where they are with --set source=PATH, or step.option=PATH"
        raise FormatError("these are not the inputs that the manifest names", where=listed(strange), help=tip)
    if document.changed or not isinstance(value, Checkpoint):
        return value
    if _unnamed(json.loads(json.dumps(list(value.history)))) != _unnamed(list(made.history)):
        tip = f"it was made by version {made.version}; or by Python functions that are no steps"
        raise FormatError("the recipe does not make what the history says", where=[document.path], help=tip)
    now = digests_of(value.files)
    if changed := [path for path, digest in made.digests.items() if now.get(path, digest) != digest]:
        tip = "a file of the source was edited since: take the one that it was made of"
        raise FormatError("other files would lie beside the weights than before", where=listed(changed), help=tip)
    headers = [str(one.get("name")) for one in made.inputs if one.get("digest") == "sha256 of the header"]
    note = f"known by the headers of its files, values not compared: {series(listed(headers))}"
    return replace(value, notes=(*value.notes, note)) if headers else value


def _unnamed(history: Any) -> Any:
    """A history without what inputs are called: they may be called otherwise here."""
    if isinstance(history, Mapping):
        rest = {key: value for key, value in history.items() if key not in _NAMES or not isinstance(value, str)}
        return {key: _unnamed(value) for key, value in rest.items()}
    return [_unnamed(one) for one in history] if isinstance(history, list | tuple) else history


def _described(inputs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """What tells the content of each file of the inputs, by role and name."""
    found = dict[tuple[str, str], str]()
    for number, one in enumerate(inputs):
        for name, facts in one.get("files", {}).items():
            told = facts if isinstance(facts, Mapping) else {}
            found[f"{number + 1}, {one.get('role')}", name] = str(told.get("sha256") or told.get("git"))
    return found
