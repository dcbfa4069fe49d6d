"""What was said to a step, by key, as its arguments; then the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..checkpoint import Checkpoint, open_any, open_checkpoint
from ..errors import SurgeryError
from ..files.adapters.opening import open_adapter, open_adapters
from ..files.peft import Adapter
from .kinds import Opened, WrongValue, choice
from .parameters import GROUPS, Parameter, Signature, opening_of, signature_of

Value = Checkpoint | Adapter


@dataclass(frozen=True, slots=True)
class Running:
    """What surgeries that compute at once are told: threads, bytes of buffers, and whom to tell of each tensor."""

    workers: int | None = None
    memory: int | None = None
    on_tensor: Any = None


@dataclass(frozen=True, slots=True)
class Opening:
    """How what a step names is opened: `place` says where a path leads, `made` what a recipe in its place makes."""

    place: Callable[[str], str] = str
    running: Running = Running()
    made: Callable[[Mapping[str, Any]], Any] | None = None


def apply(function: Callable[..., Any], flowing: Any, said: Mapping[str, Any], how: Opening = Opening()) -> Any:
    """The step's result for what flows into it. Raises WrongValue, and what the surgery raises."""
    return function(flowing, **arguments(signature_of(function), said, how))


def check_said(signature: Signature, said: Mapping[str, Any], flowing: Any = None) -> None:
    """Raise WrongValue for what cannot be read, before anything is opened; `flowing` is what flows, where that is
    known.
    """
    read(signature.opening, said)
    found = read(signature.parameters, said)
    _groups(signature, found)
    if (keys := [one.key for one in signature.opening if one.key in said]) and not _opens_adapters(signature, found):
        raise WrongValue("no adapter is named of which that could be said", where=keys, help="leave it away")
    for one in signature.parameters:
        if one.option.each and one.key in found:
            several = flowing if one.option.each == signature.flowing.key else found.get(one.option.each) or [None]
            if several is not None:
                _check_each(one, found[one.key], len(several) if isinstance(several, list | tuple) else 1)


def _opens_adapters(signature: Signature, found: Mapping[str, Any]) -> bool:
    """Whether an adapter is opened, or may be."""
    opened = (signature.flowing, *(one for one in signature.parameters if found.get(one.key)))
    return any(isinstance(one.kind, Opened) and "Adapter" in one.kind.openers for one in opened)


def _check_each(parameter: Parameter, values: Sequence[Any], count: int) -> None:
    """Raise WrongValue where there is not a value for each."""
    if len(values) != count:
        what = f"{len(values)} for {count} {parameter.option.each.removesuffix('s')}{'s'[: count != 1]}"
        raise WrongValue(what, where=[parameter.key], help="one for each")


def arguments(signature: Signature, said: Mapping[str, Any], how: Opening) -> dict[str, Any]:
    """What Python is to be given."""
    found, opening = read(signature.parameters, said), read(signature.opening, said)
    values: dict[str, Any] = {name: getattr(how.running, name) for name in signature.running}
    for one in signature.parameters:
        if one.key in found and not one.within:
            value = found[one.key]
            values[one.name] = opened(one.kind, value, opening, how) if isinstance(one.kind, Opened) else value
            if one.option.path and isinstance(value, str):
                values[one.name] = how.place(value)
    return values | _groups(signature, found)


def opened(kind: Opened, said: Sequence[Any], opening: Mapping[str, Any], how: Opening) -> Any:
    """What is opened for a parameter of the kind: one, or a list where it may be several."""
    alike = [_as_mapping(one) for one in said]
    if kind.openers == ("Adapter",) and all(set(one) == {"path"} for one in alike):
        found: list[Any] = list(open_adapters([how.place(one["path"]) for one in alike], **as_opened(opening)))
    else:
        found = [_one(kind, {**opening, **one} if "Adapter" in kind.openers else one, how) for one in alike]
    return found if kind.many else found[0]


def _as_mapping(said: Any) -> Mapping[str, Any]:
    return {"path": said} if isinstance(said, str) else said


def _one(kind: Opened, said: Mapping[str, Any], how: Opening) -> Value:
    """The one that is said to lie somewhere, or to be made."""
    if "source" in said:
        if how.made is None:
            raise WrongValue("a recipe stands where a path is wanted", help="write it first, and pass its path")
        return how.made(said)
    if not isinstance(said.get("path"), str):
        raise WrongValue(f"{dict(said)!r} says no path", help="a mapping has a path, or source and steps")
    path, more = how.place(said["path"]), {key.replace("-", "_"): value for key, value in said.items() if key != "path"}
    if kind.openers == ("Checkpoint",):
        for key in more:
            choice(key, ("key", "component"))
        return open_checkpoint(path, **more)
    if kind.openers == ("Adapter",) or more:
        keys = {one.key: one for one in opening_of()}
        told = {choice(key, keys): value for key, value in said.items() if key != "path"}
        return open_adapter(path, **as_opened(told))
    return open_any(path)


def read(parameters: Sequence[Parameter], said: Mapping[str, Any]) -> dict[str, Any]:
    """The values of those of which something was said, by key. Raises WrongValue, whose place is the key."""
    return {one.key: _read(one, said[one.key]) for one in parameters if one.key in said}


def as_opened(said: Mapping[str, Any]) -> dict[str, Any]:
    """What was said of adapters, read, as `open_adapter` takes it."""
    names = {one.key: one.name for one in opening_of()}
    values = {names[key]: value for key, value in said.items()}
    return values | ({"beside": []} if values.get("beside") == ["none"] else {})


def _read(parameter: Parameter, said: Any) -> Any:
    """The value that was said."""
    try:
        value = parameter.kind.read(said, parameter.option.metavar)
        for one in (value if isinstance(value, list) else [value]) if parameter.option.among else ():
            words = parameter.option.among
            choice(one if one in words else one.replace("_", "-"), words)
        return value
    except WrongValue as error:
        raise WrongValue(error.what, where=[parameter.key], help=error.help) from error


def _groups(signature: Signature, read: Mapping[str, Any]) -> dict[str, Any]:
    """The groups of which something was said."""
    said: dict[str, dict[str, Any]] = {}
    for one in signature.parameters:
        if one.within and one.key in read:
            value = read[one.key]
            said.setdefault(one.within, {})[one.name] = tuple(value) if isinstance(value, list) else value
    kinds = {name: kind for kind, name in GROUPS.items()}
    return {name: _made(kinds[name], values) for name, values in said.items()}


def _made(kind: Any, values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except SurgeryError as error:
        raise WrongValue(error.what, where=list(values), help=error.help) from error
