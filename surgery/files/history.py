"""Of what type what a manifest tells is, where another surgery goes by it: told once, where the file is read.

What nothing goes by may be anything, and is shown as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

_Holds = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _or_null(holds: _Holds) -> _Holds:
    return lambda value: value is None or holds(value)


def _are(holds: _Holds) -> _Holds:
    return lambda value: isinstance(value, list | tuple) and all(map(holds, value))


def _is_pair(value: Any) -> bool:
    return _are(_is_text)(value) and len(value) == 2


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _of(needed: Mapping[str, _Holds]) -> _Holds:
    """An object with these fields."""
    return lambda value: (
        isinstance(value, Mapping) and all(key in value and holds(value[key]) for key, holds in needed.items())
    )


_MODULES = _are(_of({"fused": _is_text, "parts": _are(_is_text), "kind": _is_text, "layout": _is_text}))
_TEXTS = dict.fromkeys(("only", "except", "add", "architecture", "quantised", "through"), _or_null(_is_text))
STEPS: Mapping[str, Mapping[str, _Holds]] = {
    "merge": {
        "adapters": _are(_of({"digest": _is_text})),
        "map": _or_null(_are(_is_pair)),
        "given": _or_null(_is_object),
        **_TEXTS,
    },
    "split": {"modules": _MODULES},
    "fuse": {"modules": _MODULES},
    "cast": {"dtype": _is_text},
    "convert": {"from": _is_text},
}
INPUT: Mapping[str, _Holds] = {
    "role": _is_text,
    "name": _is_text,
    "digest": _is_text,
    "files": lambda value: isinstance(value, Mapping) and all(map(_is_object, value.values())),
}


def merged_in(history: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What is told of each adapter that was merged, oldest first."""
    return [one for step in history if step.get("surgery") == "merge" for one in step.get("adapters", ())]


def check_history(history: Iterable[Any]) -> None:
    """Raise ValueError for a step that says something of another type than surgery writes."""
    for number, step in enumerate(history, 1):
        _check(step, {"surgery": _is_text}, f"step {number}")
        _check(step, STEPS.get(step.get("surgery", ""), {}), f"step {number}")


def check_inputs(inputs: Iterable[Any]) -> None:
    """Raise ValueError for an input that says something of another type than surgery writes."""
    for number, entry in enumerate(inputs, 1):
        _check(entry, INPUT, f"input {number}")


def _check(found: Any, types: Mapping[str, _Holds], where: str) -> None:
    if not isinstance(found, Mapping):
        raise ValueError(f"{where} is no object")
    if wrong := [key for key, holds in types.items() if key in found and not holds(found[key])]:
        raise ValueError(f"{where} has another `{wrong[0]}` than surgery writes")
