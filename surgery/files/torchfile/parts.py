"""Which of the tensors in a file are a model's.

A file holds a mapping of names to tensors, or several of them beside an optimizer's state, settings and counters:
`{"model": …, "optimizer": …, "epoch": 3}`. Where one mapping is left once an optimizer's is, that is the model; where
there are several, the user says which, and nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from ...errors import FormatError, NotACheckpoint, listed, series
from .records import Call, Global, Leaf, text, told
from .storages import Unreadable, array, described

# Keys under which a training keeps what is no model.
_TRAINING = re.compile(
    r".*optim.*|.*sched.*|.*scaler.*|callbacks|loops|.*rng.*|.*random_state.*|.*grad.*", re.IGNORECASE
)
# Those of them that may lie among a model's weights, as torchtitan saves them.
_AMONG = re.compile(
    r".*optimizers?(_\d+)?|optims?|.*schedulers?(_\d+)?|train_state|dataloader.*|dl_state.*|rng_state.*"
)
# A training's tensors that are called so, where names are flat: Megatron's.
_MOMENTS = re.compile(r"(chained_\d+\.)?optimizer\.(state|distributed|fp32\w*|param_groups)\..+")
_EXTRA = "_extra_state"  # what a module keeps beside its weights, such as scales of past steps
_COUNTERS = re.compile(r".*(step|epoch|iter|loss|lr|count|time|seed|token|sample).*", re.IGNORECASE)
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "_forward_module.")
_OF_MODULES = ("_parameters", "_buffers", "_modules")  # where a whole module that was pickled holds its state
_DEPTH = 64
_LOOKED_AT = 10_000  # values in which calls are looked for
T = TypeVar("T")
_TIMES = 20  # names a tensor
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
    place, path, beside, held = root, list[str](), list[str](), _Held(root, where)
    for step in (s for s in key.split(".") if s) if key else _to_model(root, held, where):
        entries = {text(name): value for name, value in _entries(place)}
        if step not in entries:
            tip = f"keys there are {series(listed(list(entries)))}"
            raise NotACheckpoint(f"nothing lies under the key {step}", where=[where], help=tip)
        beside += [".".join([*path, name]) for name in entries if name != step]
        place = entries[step]
        path.append(step)
    among = [] if key else dict.fromkeys(_among(place, held))
    beside += [".".join([*path, name]) for name in among]
    found, unreadable, extra = _by_name(place, held, among, where, everything=key == ALL)
    beside += extra
    unreadable |= _arrays(place, held)
    idle = {text(name): value for name, value in _entries(place) if not held.any_in(value)}
    beside += [".".join([*path, n]) + _not_run(v) for n, v in idle.items() if n not in unreadable]
    if not found:
        why = [f"{name}: {reason}" for name, reason in unreadable.items()]
        why += [f"it calls {name}, which was not run" for name in _calls(root)]
        tip = "pass a file with a model's weights"
        raise NotACheckpoint("no tensor is in the file", where=[where, *listed(why)], help=tip)
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


def _to_model(root: Any, held: _Held, where: str) -> list[str]:
    """The keys that lead to the model's mapping. Raises NotACheckpoint where it is one of several."""
    path, place = list[str](), root
    while len(path) < _DEPTH:
        if _is_module(place) or any(_is_weight(text(name), held.tensor(one)) for name, one in _entries(place)):
            return path
        holders = {text(name): one for name, one in _entries(place) if not held.tensor(one) and held.any_in(one)}
        models = {name: value for name, value in holders.items() if not _TRAINING.fullmatch(name)}
        if len(models) > 1:
            rows = [f"{name}: {sum(1 for _ in held.all_in(value))} tensors" for name, value in models.items()]
            tip = f"say which one is meant: --key {next(iter(models))}; --key {ALL} takes all of them"
            raise NotACheckpoint("the file holds more than one set of weights", where=[where, *listed(rows)], help=tip)
        if not models:
            return path
        name, place = next(iter(models.items()))
        path.append(name)
    return path


def _among(place: Any, held: _Held) -> list[str]:
    """A training's mappings that lie among a model's weights, by key."""
    entries = [(text(name), value) for name, value in _entries(place)]
    if not any(_is_weight(name, held.tensor(value)) for name, value in entries):
        return []
    flat = [name for name, value in entries if _MOMENTS.fullmatch(name) and held.tensor(value)]
    return flat + [n for n, one in entries if _AMONG.fullmatch(n) and not held.tensor(one) and held.any_in(one)]


def _by_name(
    place: Any, held: _Held, among: Collection[str], where: str, *, everything: bool
) -> tuple[dict[str, Leaf], dict[str, str], list[str]]:
    """The tensors in a mapping by name, those that cannot be read, with the reason, and what is no weight; nothing of
    what lies `among` them, or that modules keep beside them, unless `everything` is asked for.
    """
    found, unreadable, extra = dict[str, Leaf](), dict[str, str](), dict[str, None]()
    for path, value in held.all_in(place):
        name = ".".join(path)
        if path and path[0] in among:
            continue
        if not everything and (at := next((i for i, step in enumerate(path) if _is_extra(step)), None)) is not None:
            extra[".".join(path[: at + 1])] = None
            continue
        if name in found or name in unreadable:
            tip = "rename one, and save again"
            raise FormatError("two tensors have one name", where=[f"{where}: {name}"], help=tip)
        if not name:
            raise NotACheckpoint(
                "the file is one tensor, without a name", where=[where], help="save a dictionary of names to tensors"
            )
        if name == "__metadata__" or not _is_text(name):
            tip = "save a dictionary of names to tensors"
            raise FormatError(f"a tensor is called {name!r}, which is no name", where=[where], help=tip)
        if isinstance(value, Unreadable):
            unreadable[name] = str(value)
        else:
            found[name] = value
    return found, unreadable, list(extra)


def _is_extra(step: str) -> bool:
    return step == _EXTRA or step.endswith(f".{_EXTRA}")


def _not_run(value: Any) -> str:
    """What a record is that would be called where it is unpickled, for a line on what is left out."""
    is_call = isinstance(value, Call) and value.state is None and not value.entries
    return f" ({told(value)}, which was not run)" if is_call else ""


def _calls(root: Any) -> list[str]:
    """What a pickle calls, but for what makes values of Python's own."""
    found, seen, todo = dict[str, None](), set[int](), [root]
    while todo and len(seen) < _LOOKED_AT:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Call):
            if not (isinstance(value.function, Global) and value.function.module == "collections"):
                found[told(value.function)] = None
            todo += [value.args, value.state, *value.items]
        todo += [child for _, child in _entries(value)]
    return list(found)


def _arrays(place: Any, held: _Held) -> dict[str, str]:
    """What lies among weights and is values without being a tensor, but for counters and a training's own."""
    if not any(held.tensor(value) for _, value in _entries(place)):
        return {}
    found = {text(name): why for name, value in _entries(place) if (why := array(value))}
    return {n: why for n, why in found.items() if not (_COUNTERS.fullmatch(n) or _TRAINING.fullmatch(n))}


def _is_text(name: str) -> bool:
    """Whether it can be written: a pickle can hold halves of characters."""
    try:
        return bool(name.encode())
    except UnicodeError:
        return False


def _is_weight(name: str, tensor: Leaf | Unreadable | None) -> bool:
    """Whether it is a tensor, and no counter of a training's, beside which the model lies in a mapping of its own."""
    return tensor is not None and not (getattr(tensor, "shape", (1,)) in ((), (1,)) and _COUNTERS.fullmatch(name))


def _is_module(value: Any) -> bool:
    """Whether it is an object that was pickled whole, and no mapping: a module, or TorchScript."""
    return isinstance(value, Call) and not value.entries


class _Held:
    """The tensors among the records of a file, each of which is asked once, and what they lie in.

    Values that many others hold, or that hold themselves, cost no more than others.
    """

    def __init__(self, root: Any, where: str) -> None:
        self.where = where
        self._tensors: dict[int, Leaf | Unreadable] = {}  # by id: the records live as long as the root
        self._holders = set[int]()
        above: dict[int, list[int]] = {id(root): []}
        todo = [] if self._ask(root) else [root]
        while todo:
            value = todo.pop()
            for _, child in _inside(value):
                if self._ask(child):
                    self._holders.add(id(value))
                    continue
                if id(child) not in above:
                    above[id(child)] = []
                    todo.append(child)
                above[id(child)].append(id(value))
        reached = list(self._holders)
        while reached:
            more = [one for one in above[reached.pop()] if one not in self._holders]
            self._holders.update(more)
            reached += more

    def _ask(self, value: Any) -> bool:
        if id(value) in self._tensors:
            return True
        try:
            found = value if isinstance(value, Leaf) else described(value)
        except Unreadable as error:
            self._tensors[id(value)] = error
            return True
        if found is not None:
            self._tensors[id(value)] = found
        return found is not None

    def tensor(self, value: Any) -> Leaf | Unreadable | None:
        """The tensor that a value is, or why it cannot be read; None for what is none."""
        return self._tensors.get(id(value))

    def any_in(self, value: Any) -> bool:
        """Whether a value is a tensor, or holds one."""
        return id(value) in self._holders or id(value) in self._tensors

    def all_in(self, root: Any) -> Iterator[tuple[tuple[str, ...], Leaf | Unreadable]]:
        """Every tensor with the keys that lead to it, in order; what holds itself is entered once.

        Raises FormatError for names beyond number: a few bytes can hold what holds them twice, and that twice again.
        """
        left = _TIMES * len(self._tensors) + 1000
        todo: list[tuple[tuple[str, ...], Any, tuple[int, ...]]] = [((), root, ())]
        while todo:
            path, value, above = todo.pop()
            tensor = self.tensor(value)
            if tensor is not None:
                left -= 1
                if left < 0:
                    what = f"{len(self._tensors)} tensors have more than {_TIMES} names each"
                    raise FormatError(what, where=[self.where], help="the file is made to harm, or damaged")
                yield path, tensor
            elif id(value) in self._holders and id(value) not in above and len(above) < _DEPTH:
                below = (*above, id(value))
                inside = [((*path, text(key)), child, below) for key, child in _inside(value) if self.any_in(child)]
                todo += reversed(inside)


def _inside(value: Any) -> Iterator[tuple[Any, Any]]:
    """What may be or hold a tensor in a value, by key."""
    return ((key, child) for key, child in _entries(value) if isinstance(child, dict | list | tuple | Call | Leaf))


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """What lies in a mapping, a list or an object, by key."""
    if isinstance(value, dict):
        return value.items()
    if isinstance(value, Call):
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if value.entries or not isinstance(state, dict):
            return value.entries.items()
        return _of_module(state) if all(part in state for part in _OF_MODULES) else state.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


def _of_module(state: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """What a module's state dict would hold: not the buffers that it makes anew where it is loaded."""
    own = state.get("_non_persistent_buffers_set")
    own = own.args[0] if isinstance(own, Call) and isinstance(own.args, tuple) and own.args else own
    for part in _OF_MODULES:
        for key, child in _entries(state[part]):
            if not (part == "_buffers" and isinstance(own, list) and key in own):
                yield key, child
