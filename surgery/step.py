"""A public surgery as a step: its signature is the one definition of its command, its keys in a recipe, and their help.

    @step
    def drop(
        checkpoint: Checkpoint,
        pattern: Annotated[str, Option("Leave out tensors whose whole name matches.", "REGEX")],
    ) -> Checkpoint:
        \"\"\"Leave tensors out, by name.\"\"\"

The first parameter is what flows through a pipeline: a checkpoint, an adapter, or several of them. Those with an
`Option`, and further checkpoints and adapters, can be said on the command line and in a recipe; what else there is, is
Python's alone. The result knows the `Recipe` that made it: what was opened, and each step with what was said to it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from .opened import takes_opened

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Panels of options that more than one command has.
FUSED = "Fused modules, where config.json does not tell"
MERGING = "How adapters are merged"
CODES = "A quantised base"
READING = "Adapters of other tools, where the file does not tell"


@dataclass(frozen=True, slots=True)
class Option:
    """What a parameter is on the command line, and as a key of a recipe.

    It is called as the parameter, `max_rank` is `--max-rank`, unless `flags` say otherwise. `metavar` stands for its
    value; of a sequence, one with a comma, `W,W,…`, is given at once, another one often. `path`: it names a place.
    `least`: the smallest number that means anything. `among`: the words that can be said, where they are few; `words`:
    those that a shell proposes, where others can be said as well, or the surgery says more of those that cannot.
    `each`: of which other parameter, by key, it has a value for each.
    """

    help: str
    metavar: str = ""
    flags: tuple[str, ...] = ()
    panel: str = ""
    path: bool = False
    least: int | None = None
    among: tuple[str, ...] = ()
    each: str = ""
    words: tuple[str, ...] = ()

    def key(self, name: str) -> str:
        """Its name in a recipe, and behind `--`, where it is the parameter `name`."""
        return self.flags[0].lstrip("-") if self.flags else name.rstrip("_").replace("_", "-")


@dataclass(frozen=True, slots=True)
class Place:
    """A path, or a name on the Hub, as it was given, and what was said of it when it was opened."""

    path: str
    said: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A step, and what was said to it, by key: what JSON holds, or Place and Recipe."""

    step: str
    said: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a value was made: of what was opened, or of several others, by which steps. No source: nobody knows."""

    source: Place | tuple[Recipe, ...] | None = None
    steps: tuple[Call, ...] = ()

    @property
    def known(self) -> bool:
        """Whether all that it says can be opened again."""
        inner = [value for call in self.steps for value in recipes_in(call.said)]
        made = self.source if isinstance(self.source, tuple) else ()
        return self.source is not None and all(one.known for one in (*made, *inner))


def recipes_in(said: Any) -> Iterator[Recipe]:
    """The recipes that stand in what was said."""
    if isinstance(said, Recipe):
        yield said
    elif isinstance(said, Mapping | list | tuple):
        for one in said.values() if isinstance(said, Mapping) else said:
            yield from recipes_in(one)


def like(other: Callable[..., Any], without: Collection[str] = ()) -> Callable[[_Function], _Function]:
    """The function, which hands what else is said to it, its `**told`, to the `other` surgery: all options of that,
    `without` some.
    """

    def marked(function: _Function) -> _Function:
        function.like, function.without = other, frozenset(without)  # type: ignore[attr-defined]
        return function

    return marked


def step(function: _Function) -> _Function:
    """The surgery as a step: its values are checked as `takes_opened` does, and its result knows how it was made."""
    checked, signature = takes_opened(function), inspect.signature(function)

    @functools.wraps(function)
    def recorded(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _as_written(args), {name: _as_written(value) for name, value in kwargs.items()}
        result = checked(*args, **kwargs)
        said = signature.bind(*args, **kwargs).arguments
        return replace(result, recipe=_after(function, signature, said))

    return cast(_Function, recorded)


def _as_written(value: Any) -> Any:
    """A checkpoint that steps made, as if it had been written in between: a chain is its steps, one after another."""
    if isinstance(value, list | tuple):
        return type(value)(map(_as_written, value)) if type(value) in (list, tuple) else value
    return value.as_written() if hasattr(value, "as_written") else value


def options_of(function: Callable[..., Any]) -> dict[str, Option]:
    """The options among its parameters, by name."""
    return _options(inspect.unwrap(function))


@functools.cache
def _options(function: Callable[..., Any]) -> dict[str, Option]:
    hints = get_type_hints(function, include_extras=True)
    more = {name: get_args(hint)[1:] for name, hint in hints.items() if get_origin(hint) is Annotated}
    own = {name: one for name, said in more.items() for one in said if isinstance(one, Option)}
    return {**(options_of(function.like) if hasattr(function, "like") else {}), **own}


def _after(function: Callable[..., Any], signature: inspect.Signature, given: Mapping[str, Any]) -> Recipe:
    """The recipe of what the surgery makes, told by what it was given."""
    flowing = next(iter(signature.parameters))
    options, said = options_of(function), dict[str, Any]()
    for name, value, usual in _given(signature, given):
        told = _told(value)
        if name == flowing or value is usual or value == usual or (name not in options and not _opened(told)):
            continue
        if isinstance(told, _Fields):
            said |= told.fields
        elif name in options:
            said[options[name].key(name)] = Place(told) if options[name].path and isinstance(told, str) else told
        else:
            said[name.replace("_", "-")] = told
    before = _told(given[flowing])
    call = Call(function.__name__.replace("_", "-"), said)
    if isinstance(before, Recipe):
        return Recipe(before.source, (*before.steps, call))
    return Recipe(tuple(before), (call,))


def _given(signature: inspect.Signature, given: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Each value by its parameter's name, and what it is where nothing is said."""
    for name, value in given.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            yield from ((one, inner, parameter.empty) for one, inner in value.items())
        else:
            yield name, value, parameter.default


@dataclass(frozen=True, slots=True)
class _Fields:
    """A value whose fields are options each."""

    fields: Mapping[str, Any]


def _told(value: Any) -> Any:
    """A value as a recipe says it."""
    if isinstance(made := getattr(value, "recipe", None), Recipe):
        return made
    if hasattr(value, "said"):
        return _Fields(value.said())
    if isinstance(value, Mapping):
        return {key: _told(one) for key, one in value.items()}
    return [_told(one) for one in value] if isinstance(value, list | tuple | set | frozenset) else value


def _opened(told: Any) -> bool:
    return isinstance(told, Recipe | _Fields) or (isinstance(told, list) and any(map(_opened, told)))
