"""What can be said to a step, as options of typer: a class made of options for each set of parameters."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from surgery.recipes.kinds import Scalar, WrongValue
from surgery.recipes.parameters import Parameter, opening_of, signature_of
from surgery.recipes.saying import Opening, arguments, as_opened, check_said, read
from surgery.surgeries.merging.merge import merge

from .completing import proposing
from .running import wrong_usage


@dataclass(frozen=True)
class Said:
    """Options of parameters, and what the command line said of them."""

    def said(self) -> dict[str, Any]:
        """What was said, by key; options that were not given are not in it."""
        given = {one.metadata["key"]: (getattr(self, one.name), one.default) for one in fields(self)}
        return {key: value for key, (value, usual) in given.items() if value != usual and value not in ([], ())}


def group_of(name: str, parameters: Sequence[Parameter]) -> type[Said]:
    """A class of options for these parameters."""
    rows = [(called(one), _hint(one), field(default=_default(one), metadata={"key": one.key})) for one in parameters]
    return make_dataclass(name, rows, bases=(Said,), frozen=True)


def called(parameter: Parameter) -> str:
    """What the command's own function calls it."""
    name = parameter.key.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def argument_of(parameter: Parameter) -> Any:
    """The type of an argument of the command line."""
    metavar, text = parameter.option.metavar, parameter.option.help
    shown = typer.Argument(metavar=metavar, help=marked(text), show_default=False)
    kind: Any = list[str] if parameter.kind.often else str
    return Annotated[kind if parameter.needed else kind | None, shown]


def wrong(error: WrongValue) -> typer.BadParameter:
    """The error as wrong usage of the options that it names."""
    return wrong_usage(error, " ".join(f"--{key}" for key in error.where))


def marked(text: str) -> str:
    """A text of the library's for rich: its code is bold, its brackets are brackets."""
    return re.sub(r"`([^`]+)`", r"[bold]\1[/bold]", text.replace("[", r"\["))


def _hint(parameter: Parameter) -> Any:
    if parameter.argument:
        return argument_of(parameter)
    option, kind = parameter.option, parameter.kind
    base: Any = list[str] if kind.often else kind.typed
    if _default(parameter) is None:
        base = base | None
    numbers = {"min": option.least} if option.least is not None else {}
    words = option.among or option.words or tuple(re.findall(r"\w+", option.metavar) if "|" in option.metavar else ())
    shown = typer.Option(
        *parameter.flags,
        autocompletion=proposing(words, several="," in option.metavar) if words else None,
        metavar=None if base is bool else option.metavar or None,
        help=marked(option.help),
        rich_help_panel=option.panel or None,
        **numbers,  # type: ignore[arg-type]
    )
    return Annotated[base, shown]


def _default(parameter: Parameter) -> Any:
    """What stands where nothing is said."""
    usual, kind = parameter.default, parameter.kind
    if isinstance(kind, Scalar):
        return ("" if usual is None and kind.of is str else usual) if kind.of is not bool else bool(usual)
    return None if kind.often else ""


_OF_MERGE_ALONE = ("through", "trained-on")

if TYPE_CHECKING:

    class Merging(Said):
        """How adapters are merged, for who merges and for who proves it."""

    class Reading(Said):
        """What is said of adapters whose files do not tell."""
else:
    _SHARED = [one for one in signature_of(merge).parameters if one.option.panel and one.key not in _OF_MERGE_ALONE]
    Merging = group_of("Merging", _SHARED)
    Reading = group_of("Reading", opening_of())


def merging_arguments(merging: Said, adapters: Sequence[str]) -> dict[str, Any]:
    """What was said of merging these adapters, as arguments for a function of the library."""
    try:
        check_said(signature_of(merge), {"adapters": list(adapters), **merging.said()})
        return arguments(signature_of(merge), merging.said(), Opening())
    except WrongValue as error:
        raise wrong(error) from error


def reading_arguments(reading: Said) -> dict[str, Any]:
    """What was said of adapters, as `open_adapter` takes it."""
    try:
        return as_opened(read(opening_of(), reading.said()))
    except WrongValue as error:
        raise wrong(error) from error
