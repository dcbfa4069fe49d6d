"""What a recipe says of its output: the options of every command that writes, by the same names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from surgery.errors import FormatError, listed, nearest, series
from surgery.recipes.document import Document
from surgery.recipes.kinds import Kind, Scalar, Several, WrongValue
from surgery.recipes.parameters import Parameter
from surgery.step import Option

from .helping import plain
from .options import Writing, made_of, options_in

# What is said of a run, and not of what is written.
_OF_A_RUN = ("json", "quiet", "debug", "dry_run", "follow_links", "key", "component")


def _kind(hint: Any) -> Kind:
    bare = get_args(hint)[0]
    types = [one for one in (get_args(bare) or [bare]) if one is not type(None)]
    return Several(str, commas=False) if types[0] not in (str, int, float, bool) else Scalar(types[0])


def _flag(hint: Any) -> str:
    said = hint.__metadata__[0]
    spelled = [one for one in (said.default, *(said.param_decls or ())) if isinstance(one, str)]
    return next(one for one in spelled if one.startswith("--")).removeprefix("--")


def _parameter(name: str, hint: Any) -> Parameter:
    said = hint.__metadata__[0]
    option = Option(plain(said.help or ""), said.metavar or "")
    return Parameter(_flag(hint), name, option, _kind(hint), None)


OUTPUT: Mapping[str, Parameter] = {
    one.key: one for one in (_parameter(f.name, hint) for f, hint in options_in(Writing) if f.name not in _OF_A_RUN)
}


def with_output(document: Document, options: Writing) -> Writing:
    """The options of the command line, and what the recipe says where they say nothing. Raises FormatError."""
    said = dict[str, Any]()
    for key, value in document.output.items():
        where = [document.where("output", key)]
        if key not in OUTPUT:
            close = nearest(str(key), list(OUTPUT)) or listed(sorted(OUTPUT), 12)
            tip = f"nearest are {series(close)}; where it is written is said by output: {{output: DIR}}"
            raise FormatError(f"output has no option {key!r}", where=where, help=tip)
        option = OUTPUT[key]
        try:
            said[option.name] = option.kind.read(value, option.option.metavar)
        except WrongValue as error:
            raise FormatError(f"output: {key}: {error.what}", where=where, help=error.help) from error
    given = _values(options)
    usual = _values(Writing())
    if "out" in said and given["out"] is not None and given["out"] != said["out"]:
        tip = "leave -o away, or give --set output=DIR"
        raise FormatError("there are two outputs", where=[document.where("output"), f"-o {given['out']}"], help=tip)
    return made_of(Writing, {**usual, **said, **{key: value for key, value in given.items() if value != usual[key]}})


def _values(options: Any) -> dict[str, Any]:
    """The options by name, those of a group within a group too."""
    found = dict[str, Any]()
    for name, value in vars(options).items():
        found |= _values(value) if hasattr(value, "__dataclass_fields__") else {name: value}
    return found
