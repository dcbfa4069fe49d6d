"""Which of the tensors in a file are a model's.

A file holds a mapping of names to tensors, or several of them beside an optimizer's state, settings and counters:
`{"model": …, "optimizer": …, "epoch": 3}`. Where one mapping is left once an optimizer's is, that is the model; where
there are several, the user says which, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import FormatError, NotACheckpoint, listed
from .records import Call, Leaf
from .storages import Unreadable, described

# Keys under which a training keeps what is no model.
_TRAINING = re.compile(
    r".*optim.*|.*sched.*|.*scaler.*|callbacks|loops|.*rng.*|.*random_state.*|.*grad.*", re.IGNORECASE
)
_COUNTERS = re.compile(r".*(step|epoch|iter|loss|lr|count|time|seed|token|sample).*", re.IGNORECASE)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
_OF_MODULES = {"_parameters", "_buffers", "_modules"}  # in whole modules that were pickled: no part of a name
_DEPTH = 64
T = TypeVar("T")
ALL = "."  # the key of all that is in a file


@dataclass(frozen=True, slots=True)
class Chosen:
    """The model's tensors by name; those that cannot be read, with the reason; what lay beside it; and notes."""

    tensors: Mapping[str, Leaf]
    unreadable: Mapping[str, str]
    beside: tuple[str, ...]
    notes: tuple[str, ...]

    def told(self, of: str = "") -> list[str]:
        """The notes, and one on what was left out, of the file called `of`."""
        notes = list(self.notes)
        if self.beside:
            which, left = f" of {of}" if of else "", ", ".join(listed(list(self.beside), 5))
            notes.append(f"left out{which}, since it is no part of the model: {left}")
        return notes


def chosen(root: Any, where: str, key: str = "") -> Chosen:
    """The model in what a file holds, or what lies under `key` there, names with dots between them; `ALL`: all of it.

    Raises NotACheckpoint where there is none, or more than one; FormatError for two tensors of one name.
    """
    place, path, beside = root, list[str](), list[str]()
    for step in (s for s in key.split(".") if s) if key else _to_model(root, where):
        entries = {str(name): value for name, value in _entries(place).items()}
        if step not in entries:
            tip = f"keys there are {', '.join(listed(list(entries)))}"
            raise NotACheckpoint(f"nothing lies under the key {step}", where=[where], help=tip)
        beside += [".".join([*path, name]) for name in entries if name != step]
        place = entries[step]
        path.append(step)
    found, unreadable = _by_name(place, where)
    idle = [
        str(name) for name, value in _entries(place).items() if _tensor(value) is None and not _holds_tensors(value)
    ]
    beside += [".".join([*path, name]) for name in idle]
    if not found:
        why = listed([f"{name}: {reason}" for name, reason in unreadable.items()])
        raise NotACheckpoint("no tensor is in the file", where=[where, *why], help="pass a file with a model's weights")
    notes = [f"read from the key {'.'.join(path)}"] if path and not key else []
    named, unwrapping = unwrapped(found)
    return Chosen(named, unreadable, tuple(beside), (*notes, *unwrapping))


def unwrapped(found: Mapping[str, T]) -> tuple[dict[str, T], list[str]]:
    """The tensors without what wrappers put before all names; with a note on each."""
    named, notes = dict(found), list[str]()
    while named and (wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in named)), None)):
        named = {name.removeprefix(wrapper): tensor for name, tensor in named.items()}
        notes.append(f"all names began with {wrapper}, which a wrapper put there: taken off")
    return named, notes


def _to_model(root: Any, where: str) -> list[str]:
    """The keys that lead to the model's mapping. Raises NotACheckpoint where it is one of several."""
    path, place = list[str](), root
    while len(path) < _DEPTH:
        entries = _entries(place)
        if any(_is_weight(str(name), value) for name, value in entries.items()) or _is_module(place):
            return path
        holders = {str(n): value for n, value in entries.items() if _tensor(value) is None and _holds_tensors(value)}
        models = {name: value for name, value in holders.items() if not _TRAINING.fullmatch(name)}
        if len(models) > 1:
            rows = [f"{name}: {sum(1 for _ in _tensors(value))} tensors" for name, value in models.items()]
            tip = f"say which one is meant: --key {next(iter(models))}; --key {ALL} takes all of them"
            raise NotACheckpoint("the file holds more than one set of weights", where=[where, *listed(rows)], help=tip)
        if not models:
            return path
        name, place = next(iter(models.items()))
        path.append(name)
    return path


def _by_name(place: Any, where: str) -> tuple[dict[str, Leaf], dict[str, str]]:
    """The tensors in a mapping by name, and those that cannot be read, with the reason."""
    found, unreadable = dict[str, Leaf](), dict[str, str]()
    for path, value in _tensors(place):
        name = ".".join(path)
        if name in found or name in unreadable:
            tip = "rename one, and save again"
            raise FormatError("two tensors have one name", where=[f"{where}: {name}"], help=tip)
        if isinstance(value, Unreadable):
            unreadable[name] = str(value)
        else:
            found[name] = value
    return found, unreadable


def _tensor(value: Any) -> Leaf | Unreadable | None:
    if isinstance(value, Leaf):
        return value
    try:
        return described(value)
    except Unreadable as error:
        return error


def _is_weight(name: str, value: Any) -> bool:
    """Whether it is a tensor, and no counter of a training's, beside which the model lies in a mapping of its own."""
    found = _tensor(value)
    return found is not None and not (getattr(found, "shape", (1,)) in ((), (1,)) and _COUNTERS.fullmatch(name))


def _is_module(value: Any) -> bool:
    """Whether it is an object that was pickled whole, and no mapping: a module, or TorchScript."""
    return isinstance(value, Call) and not value.entries


def _holds_tensors(value: Any) -> bool:
    return next(_tensors(value), None) is not None


def _entries(value: Any) -> Mapping[Any, Any]:
    """What lies in a mapping, a list or an object, by key."""
    if isinstance(value, dict):
        return value
    if isinstance(value, Call):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        return value.entries or (state if isinstance(state, dict) else {})
    return dict(enumerate(value)) if isinstance(value, list | tuple) else {}


def _tensors(root: Any) -> Iterator[tuple[tuple[str, ...], Leaf | Unreadable]]:
    """Every tensor with the keys that lead to it, in order; what holds itself is entered once."""
    todo: list[tuple[tuple[str, ...], Any, tuple[int, ...]]] = [((), root, ())]
    while todo:
        path, value, above = todo.pop()
        tensor = _tensor(value)
        if tensor is not None:
            yield path, tensor
        elif id(value) not in above and len(above) < _DEPTH:
            inside = [
                (path if key in _OF_MODULES else (*path, str(key)), child, (*above, id(value)))
                for key, child in _entries(value).items()
                if isinstance(child, dict | list | tuple | Call | Leaf)
            ]
            todo += reversed(inside)
