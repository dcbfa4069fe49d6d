"""Kinds of values that can be said to a step: how each is read, from a text of the command line or from a recipe.

What a recipe may hold is what JSON has; a text in it is read as on the command line, so that `weights: 0.7,0.3` and
`weights: [0.7, 0.3]` are the same. To add a kind: a class, and a line in `kind_of`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Protocol, TypeVar, Union, get_args, get_origin

from ..errors import WrongUsage, nearest, series

_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_JSON = {str: "string", int: "integer", float: "number", bool: "boolean"}


class WrongValue(WrongUsage):
    """What was said is no value of the option's kind."""


class Whole(int):
    """A whole number, with the text that it was written as: where a text is wanted, that counts."""

    def __new__(cls, text: str) -> Whole:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


class Real(float):
    """The same for a number that is not whole."""

    def __new__(cls, text: str) -> Real:
        made = super().__new__(cls, text)
        made.text = text
        return made

    text: str


class Kind(Protocol):
    """A kind of values."""

    @property
    def often(self) -> bool:
        """Whether the command line takes it more than once."""

    @property
    def typed(self) -> type:
        """What the command line makes of its text: a number by itself, else a text."""

    def read(self, said: Any, metavar: str) -> Any:
        """The value for Python. Raises WrongValue."""

    def schema(self) -> dict[str, Any]:
        """What a JSON schema says of it."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A text, a number, a flag."""

    of: type
    often: bool = False

    @property
    def typed(self) -> type:
        return self.of

    def read(self, said: Any, metavar: str) -> Any:
        if isinstance(said, int | float) and not isinstance(said, bool):
            said = self._of_number(said)
        fits = isinstance(said, self.of) and (self.of is bool or not isinstance(said, bool))
        if not fits and not (self.of is float and type(said) is int):
            quoted = "it is written without quotes" if self.of is not str else None
            tip = f"wanted is {metavar}" if metavar[1:] else quoted
            raise WrongValue(f"{said!r} is not {_WORDS[self.of]}", help=tip)
        if isinstance(said, float) and not math.isfinite(said):
            raise WrongValue(f"{said!r} is not {_WORDS[self.of]}", help="a finite one")
        return said

    def _of_number(self, said: float) -> Any:
        """A number as a text, where that is wanted, as it was written; else as Python has it."""
        if self.of is str:
            return getattr(said, "text", str(said))
        return int(said) if isinstance(said, int) else float(said)

    def schema(self) -> dict[str, Any]:
        return {"type": ["string", "number"] if self.of is str else _JSON[self.of]}


@dataclass(frozen=True, slots=True)
class Several:
    """A list: one text with commas where `commas`, else a text for each."""

    of: type
    commas: bool

    @property
    def often(self) -> bool:
        return not self.commas

    @property
    def typed(self) -> type:
        return str

    def read(self, said: Any, metavar: str) -> Any:
        if isinstance(said, str) and self.commas:
            said = [_number(part.strip(), self.of, said, metavar) for part in said.split(",")]
        listed = said if isinstance(said, list | tuple) else [said]
        return [self._one(one, metavar) for one in listed]

    def _one(self, said: Any, metavar: str) -> Any:
        if self.of is bool and said in (0, 1):
            return bool(said)
        return Scalar(self.of).read(said, metavar)

    def schema(self) -> dict[str, Any]:
        one = {"type": _JSON[self.of]}
        return {"anyOf": [{"type": "array", "items": one}, {"type": sorted({"string", _JSON[self.of]})}]}


@dataclass(frozen=True, slots=True)
class Names:
    """A list of names, or a text that is no list of plain names, such as a regular expression."""

    often: bool = False

    @property
    def typed(self) -> type:
        return str

    def read(self, said: Any, metavar: str) -> Any:
        if isinstance(said, str):
            names = [name.strip() for name in said.split(",") if name.strip()]
            return names if all(re.fullmatch(r"[\w.]+", name) for name in names) else said
        return Several(str, commas=True).read(said, metavar)

    def schema(self) -> dict[str, Any]:
        return Several(str, commas=True).schema()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Keys with values: KEY=VALUE, often or between commas; in a recipe a mapping, or a list of such texts.

    `rules` are pairs in their order, cut at the last `=` outside a group such as (?=…).
    """

    of: type
    commas: bool = False
    rules: bool = False

    @property
    def often(self) -> bool:
        return not self.commas

    @property
    def typed(self) -> type:
        return str

    def read(self, said: Any, metavar: str) -> Any:
        if isinstance(said, Mapping):
            pairs = list(said.items())
        else:
            texts = said.split(",") if isinstance(said, str) and self.commas else said
            pairs = [self._pair(one, metavar) for one in (texts if isinstance(texts, list | tuple) else [texts])]
        keys = [key for key, _ in pairs]
        if not self.rules and (twice := [key for key in keys if keys.count(key) > 1]):
            raise WrongValue(f"{twice[0]} is said twice", help=f"once each: {metavar}")
        if self.of is str and not self.rules:
            pairs = [(key, _as_text(value)) for key, value in pairs]
        read = [(self._text(key, metavar), Scalar(self.of).read(value, metavar)) for key, value in pairs]
        return read if self.rules else dict(read)

    def _pair(self, said: Any, metavar: str) -> tuple[Any, Any]:
        if isinstance(said, list | tuple) and len(said) == 2:
            return said[0], said[1]
        if not isinstance(said, str):
            raise WrongValue(f"{said!r} is not {metavar}")
        cut = _cut(said) if self.rules else said.rfind("=")
        if cut <= 0:
            raise WrongValue(
                f"`{said}` is not {metavar}", help="such as '^transformer\\.=model.'" if self.rules else None
            )
        return said[:cut], _number(said[cut + 1 :], self.of, said, metavar)

    def _text(self, key: Any, metavar: str) -> str:
        if not isinstance(key, str) or not key:
            raise WrongValue(f"{key!r} stands before a value, and is no text", help=f"it is {metavar}")
        return key

    def schema(self) -> dict[str, Any]:
        value = {"type": _JSON[self.of]}
        texts = {"type": "array", "items": {"type": ["string", "array"]}}
        return {"anyOf": [{"type": "object", "additionalProperties": value}, texts, {"type": "string"}]}


@dataclass(frozen=True, slots=True)
class Opened:
    """Checkpoints, or adapters, or either: by path, or with the recipe by which they are made."""

    openers: tuple[str, ...]
    many: bool

    @property
    def often(self) -> bool:
        return self.many

    @property
    def typed(self) -> type:
        return str

    def read(self, said: Any, metavar: str) -> Any:
        """As it was said: paths stay closed until all of a recipe is read."""
        listed = said if isinstance(said, list | tuple) else [said]
        if len(listed) != 1 and not self.many:
            raise WrongValue(f"one {metavar} is wanted, and {len(listed)} are given")
        for one in listed:
            if not isinstance(one, str | Mapping):
                raise WrongValue(
                    f"{one!r} is no {metavar}", help="a path, or a mapping with its path, or with source and steps"
                )
        return list(listed)

    def schema(self) -> dict[str, Any]:
        one = {"$ref": "#/$defs/place"}
        return {"anyOf": [one, {"type": "array", "items": one}]} if self.many else one


def kind_of(hint: Any, metavar: str) -> Kind | None:
    """The kind of values of a parameter with this annotation; None for one that is made of options itself.

    Raises TypeError for an annotation that no kind is for.
    """
    types = [one for one in _alternatives(hint) if one is not NoneType]
    named = {getattr(one, "__name__", ""): one for one in (*types, *(inner for one in types for inner in _inside(one)))}
    openers = tuple(name for name in ("Checkpoint", "Adapter") if name in named)
    if openers:
        return Opened(openers, many=any(_is_list(one) for one in types))
    if types in ([str], [int], [float], [bool]):
        return Scalar(types[0])
    lists = [one for one in types if _is_list(one)]
    if str in types and lists:
        return Names()
    if len(types) == 1 and lists:
        inner = _inside(lists[0])[0]
        if get_origin(inner) is tuple:
            return Pairs(str, rules=True)
        inner = str if inner not in _JSON else inner
        return Several(inner, commas="," in metavar)
    if len(types) == 1 and get_origin(types[0]) is not None and issubclass(get_origin(types[0]), Mapping):
        return Pairs(_inside(types[0])[1], commas="," in metavar)
    if len(types) == 1 and inspect.isclass(types[0]) and hasattr(types[0], "said"):
        return None
    raise TypeError(f"no kind of values is for {hint}")


def _as_text(value: Any) -> Any:
    """A number, a flag, or several, as the command line has them: what has a text for its value may be any of these."""
    if isinstance(value, list | tuple):
        return ",".join(str(_as_text(one)) for one in value)
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, float) else value


def choice(said: str, among: Collection[str]) -> str:
    """One of the names that are there. Raises WrongValue with the nearest."""
    if said in among:
        return said
    close = nearest(said, among)
    raise WrongValue(f"`{said}` is none of {series(list(among))}", help=f"nearest is {close[0]}" if close else None)


def _alternatives(hint: Any) -> Sequence[Any]:
    if isinstance(hint, TypeVar):
        return hint.__constraints__
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]


def _inside(hint: Any) -> list[Any]:
    """What a generic type is of."""
    inner = [one for one in get_args(hint) if one is not Ellipsis]
    return [more for one in inner for more in _alternatives(one)] if _is_list(hint) else inner


def _is_list(hint: Any) -> bool:
    origin = get_origin(hint)
    return inspect.isclass(origin) and issubclass(origin, Collection) and not issubclass(origin, Mapping)


def _number(text: str, kind: type, whole: str, metavar: str) -> Any:
    """A part of a text, as the type that is wanted."""
    if kind is str:
        return text
    read: Callable[[str], Any] = int if kind is bool else kind
    try:
        return read(text)
    except ValueError as error:
        raise WrongValue(f"`{whole}` is not {metavar}", help=f"`{text}` is not {_WORDS[kind]}") from error


def _cut(text: str) -> int:
    """Where a rule is cut."""
    places = range(len(text) - 1, -1, -1)
    return next((i for i in places if text[i] == "=" and text[max(0, i - 2) : i] not in ("(?", "?<")), -1)
