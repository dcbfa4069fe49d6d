"""What can be said to a step: its parameters, read from the signature of the surgery."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from ..files.adapters.opening import open_adapter
from ..models.fused.given import Given
from ..step import Option
from .kinds import Kind, Opened, kind_of

RUNNING = ("workers", "memory", "on_tensor")  # what a surgery that computes at once is told by who runs it
MODEL = Option("A checkpoint: a folder, one .safetensors file, an index, or org/name on the Hub.", "MODEL")
ADAPTER = Option("An adapter, here or on the Hub.", "ADAPTER")
GROUPS = {Given: "given"}  # classes whose fields are options


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that can be said: `key` in a recipe, `--key` or an argument on the command line.

    `name` is what Python calls it. `within`: the parameter of which it is a field. `needed`: there is no default.
    """

    key: str
    name: str
    option: Option
    kind: Kind
    default: Any
    needed: bool = False
    argument: bool = False
    within: str = ""

    @property
    def flags(self) -> tuple[str, ...]:
        """How it is spelled on the command line."""
        said = [flag for flag in self.option.flags if flag.startswith("-")]
        return tuple(said) if any(flag.startswith("--") for flag in said) else (f"--{self.key}", *said)


@dataclass(frozen=True, slots=True)
class Signature:
    """What a step takes: what flows through it, what is said to it, and whether adapters are opened for it, of which
    something can be said, too.
    """

    flowing: Parameter
    parameters: tuple[Parameter, ...]
    opening: tuple[Parameter, ...]
    running: tuple[str, ...]

    @property
    def said(self) -> tuple[Parameter, ...]:
        """All that can be said."""
        return (*self.parameters, *self.opening)


def signature_of(function: Callable[..., Any]) -> Signature:
    """What a step takes."""
    return _signature(inspect.unwrap(function))


@functools.cache
def _signature(function: Callable[..., Any]) -> Signature:
    taken = list(inspect.signature(function).parameters.values())
    hints = get_type_hints(function, include_extras=True)
    flowing = _flowing(taken[0], hints[taken[0].name])
    found = [one for p in taken[1:] for one in _parameters(p, hints[p.name])]
    if hasattr(function, "like"):
        own = {one.name for one in found} | getattr(function, "without", frozenset())
        rest = signature_of(function.like).parameters
        found += [one for one in rest if one.name not in own and not one.argument]
    opened = [one.kind for one in (flowing, *found) if isinstance(one.kind, Opened)]
    opening = opening_of() if any("Adapter" in kind.openers for kind in opened) else ()
    return Signature(flowing, tuple(found), opening, tuple(p.name for p in taken if p.name in RUNNING))


@functools.cache
def opening_of() -> tuple[Parameter, ...]:
    """What can be said of adapters that are opened."""
    function = inspect.unwrap(open_adapter)
    hints = get_type_hints(function, include_extras=True)
    taken = list(inspect.signature(function).parameters.values())[1:]
    return tuple(one for p in taken for one in _parameters(p, hints[p.name]))


def _flowing(parameter: inspect.Parameter, hint: Any) -> Parameter:
    bare, option = _apart(hint)
    kind = kind_of(bare, "")
    assert isinstance(kind, Opened), f"{parameter} is no checkpoint, and no adapter"
    option = option or (ADAPTER if kind.openers == ("Adapter",) else MODEL)
    return Parameter(parameter.name, parameter.name, option, kind, None, needed=True, argument=True)


def _parameters(parameter: inspect.Parameter, hint: Any) -> Sequence[Parameter]:
    """The one, or those of a group, or none for what is Python's alone."""
    bare, option = _apart(hint)
    group = next((one for one in (bare, *get_args(bare)) if one in GROUPS), None)
    if group is not None:
        return _fields(group, parameter.name)
    if option is None:
        return ()
    kind = kind_of(bare, option.metavar)
    assert kind, f"{parameter} has fields, and is no group of options"
    long = any(flag.startswith("--") for flag in option.flags)
    argument = isinstance(kind, Opened) and parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not long
    default = None if parameter.default is parameter.empty else parameter.default
    needed = parameter.default is parameter.empty
    return (Parameter(option.key(parameter.name), parameter.name, option, kind, default, needed, argument),)


def _fields(group: Any, within: str) -> list[Parameter]:
    """The fields of a group as parameters."""
    hints, found = get_type_hints(group, include_extras=True), list[Parameter]()
    for one in fields(group):
        bare, option = _apart(hints[one.name])
        if option and (kind := kind_of(bare, option.metavar)):
            found.append(Parameter(option.key(one.name), one.name, option, kind, None, within=within))
    return found


def _apart(hint: Any) -> tuple[Any, Option | None]:
    """An annotation, and the option in it."""
    if get_origin(hint) is not Annotated:
        return hint, None
    bare, *more = get_args(hint)
    return bare, next((one for one in more if isinstance(one, Option)), None)
