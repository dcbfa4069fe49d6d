"""What is open and what is a path, at the door of the library: a function that was given the one for the other says
so.

    @takes_opened
    def drop(checkpoint: Checkpoint, pattern: str) -> Checkpoint

refuses `drop("base", …)` before anything else happens, and names what makes a checkpoint of it. What may stand where
is read from the annotations, so that they cannot say anything else; the function's signature and type stay what they
are.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

from .errors import SurgeryError

OPENERS = {"Checkpoint": "open_checkpoint", "Adapter": "open_adapter", "Plan": "plan", "PushPlan": "plan_push"}
PATHS = frozenset({"PathLike", "str"})

_TEXT = re.compile(r"'[^']*'|\"[^\"]*\"")  # what an annotation says in words

_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_opened(function: _Function) -> _Function:
    """The function, which raises SurgeryError where a path is given for what must be open, one of our values for a
    path or another.
    """
    signature = inspect.signature(function)
    allowed = {
        name: types_of(parameter.annotation, function.__globals__) for name, parameter in signature.parameters.items()
    }
    allowed = {name: types for name, types in allowed.items() if types & {*OPENERS, "PathLike"}}

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(signature.parameters, args, strict=False), *kwargs.items()):
            if name in allowed and not (value is None and "None" in allowed[name]):
                for one in value if isinstance(value, list | tuple) and "Sequence" in allowed[name] else [value]:
                    _check(function.__name__, name, one, allowed[name])
        return function(*args, **kwargs)

    return cast(_Function, checked)


def types_of(annotation: object, known: Mapping[str, Any]) -> frozenset[str]:
    """The names of the types in an annotation, those behind an alias or a type variable too."""
    found = set[str]()
    for word in re.findall(r"\w+", _TEXT.sub("", str(annotation))):
        meant = known.get(word)
        if get_origin(meant) is Annotated:
            found |= types_of(get_args(meant)[0], known)
        parts = (
            meant.__constraints__
            if isinstance(meant, TypeVar)
            else get_args(meant)
            if isinstance(meant, UnionType)
            else ()
        )
        found |= {word, *(part.__name__ for part in parts)}
    return frozenset(found)


def _check(function: str, parameter: str, value: object, allowed: frozenset[str]) -> None:
    names = {kind.__name__ for kind in type(value).__mro__}
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if names & allowed or (path is not None and "PathLike" in allowed):
        return
    ours = [name for name in OPENERS if name in allowed]
    given = "a path" if path is not None else _article(type(value).__name__)
    where = [] if path is None else [os.fsdecode(path)]
    if ours:
        shown = "…" if path is None else repr(path)
        how = " or ".join(
            f"surgery.{opener}({shown if 'open' in opener else '…'})" for opener in map(OPENERS.__getitem__, ours)
        )
        what = f"`{function}` was given {given} as {parameter}, and takes {' or '.join(map(_article, ours))}"
        raise SurgeryError(what, where=where, help=f"{how} makes one")
    if names & OPENERS.keys():
        what = f"`{function}` was given {given} as {parameter}, and takes a path: what is in memory alone it cannot see"
        raise SurgeryError(
            what,
            help="pass the path that it was opened from; or write it first, with surgery.write, and pass that path",
        )


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
