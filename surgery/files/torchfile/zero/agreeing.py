"""That the files of all ranks are of one save: what they all say alike, and a 16-bit copy that its master rounds to.

Ranks of two saves have the same names and shapes: nothing else would tell. What an optimizer counts, its settings and
the trainer's counters are the same on all ranks. In stages 1 and 2 the model's 16-bit copy lies beside the masters, and
is what they round to: where it is not, one of the two is of another time.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from ....errors import FormatError, listed
from ....lazy.runs import lower
from ....lazy.tensor import Stored, Tensor
from ...opening import regular
from ..reader import Raw, tensor_of
from ..records import Call
from ..storages import Unreadable, described
from .states import Model, Optimizer, table

MASTERS = "optimizer_state_dict"
_SAVES = "they are of different saves: keep the files of one save in the folder"
_COUNTERS = ("global_steps", "skipped_steps", "global_samples", "ds_version")
_SETTINGS = 1000  # of an optimizer, that are compared
_SAMPLED = 64  # weights of which some elements are compared
_ELEMENTS = 16


def check_models(models: Sequence[Model]) -> None:
    """Raise FormatError where the files of model states do not say the same of steps, names and shapes."""
    first = models[0]
    for one in models[1:]:
        rows = [
            f"{name}: {there} and {here}"
            for name, here, there in zip(_COUNTERS, one.steps, first.steps, strict=True)
            if here != there
        ]
        rows += ["the weights' names or shapes"] if (one.groups, one.frozen) != (first.groups, first.frozen) else []
        _check_none(rows, first.raw, one.raw)


def check_optimizers(ranks: Sequence[Optimizer]) -> None:
    """Raise FormatError where the files of optimizer states do not say the same of stage, ranks, steps and settings."""
    first = ranks[0]
    said = dict(_said(first))
    for one in ranks[1:]:
        here = dict(_said(one))
        rows = [f"{name}: {said[name]} and {here[name]}" for name in said if name in here and said[name] != here[name]]
        _check_none(rows, first.raw, one.raw)


def check_copy(model: Model, weights: Mapping[str, Tensor]) -> None:
    """Raise FormatError where the model's own copy of a weight is not what its master rounds to: some elements of some
    weights are read.
    """
    both = [name for name in weights if name in model.module]
    for name in both[:: max(1, len(both) // _SAMPLED)]:
        copy = tensor_of(model.raw, model.module[name], name)
        if copy.shape != weights[name].shape:
            what = f"the model's copy is {copy.shape}, and the master {weights[name].shape}"
            raise FormatError(what, where=[f"{model.raw.file.path}: {name}"], help=_SAVES)
        master, rounded = _first(weights[name]), _first(copy)
        if not all(map(_alike, _rounded(master, str(copy.dtype)), rounded)):
            raise FormatError(
                "the model's own copy of a weight is not what its master rounds to",
                where=[f"{model.raw.file.path}: {name}"],
                help=f"files of two saves are mixed, or weights were changed after the last step: --key module takes"
                f" the copy, --key {MASTERS} the masters as they are",
            )


def _check_none(rows: Sequence[str], first: Raw, other: Raw) -> None:
    if rows:
        where = [other.file.path, first.file.path, *listed(list(rows))]
        raise FormatError("the ranks' files do not say the same", where=where, help=_SAVES)


def _said(one: Optimizer) -> Iterator[tuple[str, Any]]:
    """What is the same on all ranks, by name."""
    yield from (("the ZeRO stage", one.stage), ("the number of ranks", one.ranks), ("vectors", len(one.vectors)))
    yield from _settings(one.base, one.raw, "")


def _settings(root: Any, raw: Raw, name: str) -> Iterator[tuple[str, Any]]:
    """The numbers, words and steps in the state of an optimizer, by path; no moments."""
    todo, count = [(name, root)], 0
    while todo and count < _SETTINGS:
        path, value = todo.pop()
        count += 1
        if isinstance(value, bool | int | float | str):
            yield path, value
        elif (step := _step(path, value, raw)) is not None:
            yield path, step
        elif isinstance(value, list | tuple):
            todo += [(f"{path}[{i}]", child) for i, child in enumerate(value)]
        else:
            state = value.state if isinstance(value, Call) and isinstance(value.state, dict) else None
            entries = state or table(value)
            todo += [(f"{path}.{key}".lstrip("."), child) for key, child in entries.items() if key != "params"]


def _step(path: str, value: Any, raw: Raw) -> bytes | None:
    """The bytes of a counter that is a tensor of one element."""
    try:
        one = described(value)
    except Unreadable:
        return None
    if one is None or not path.endswith("step") or math.prod(one.shape) != 1:
        return None
    return b"".join(_bytes(tensor_of(raw, one, path), 1))


def _first(tensor: Tensor) -> list[float]:
    """Some of the first elements as numbers; none where they are no floats that are known here."""
    form = {"F32": "<f", "F16": "<e", "BF16": "<H"}.get(str(tensor.dtype))
    if form is None:
        return []
    numbers = [struct.unpack(form, one)[0] for one in _bytes(tensor, _ELEMENTS)]
    if form == "<H":
        return [struct.unpack("<f", struct.pack("<I", number << 16))[0] for number in numbers]
    return numbers


def _bytes(tensor: Tensor, most: int) -> list[bytes]:
    """The first elements, each as its bytes: as many as lie one after another in one file."""
    item = tensor.dtype.bits // 8
    first = next((piece for piece in lower(tensor) if not piece.to and isinstance(piece.leaf, Stored)), None)
    if first is None or any((dim.at, dim.to) != (1, 1) for dim in first.dims[-1:]):
        return []
    leaf, count = cast(Stored, first.leaf), min(most, first.dims[-1].count if first.dims else 1)
    with open(leaf.file.path, "rb", opener=regular) as stream:
        data = os.pread(stream.fileno(), count * item, leaf.offset + first.at * item)
    return [data[i : i + item] for i in range(0, len(data), item)]


def _rounded(numbers: Sequence[float], dtype: str) -> list[float]:
    """The numbers in another dtype, each rounded to the nearest, and of two to the even one."""
    return [_ROUNDED[dtype](number) for number in numbers]


def _to_bf16(number: float) -> float:
    bits = struct.unpack("<I", struct.pack("<f", number))[0]
    bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000 if number == number else bits
    return float(struct.unpack("<f", struct.pack("<I", bits & 0xFFFFFFFF))[0])


def _to_f16(number: float) -> float:
    try:
        return float(struct.unpack("<e", struct.pack("<e", number))[0])
    except OverflowError:
        return math.copysign(math.inf, number)


_ROUNDED: Mapping[str, Callable[[float], float]] = {"F32": float, "BF16": _to_bf16, "F16": _to_f16}


def _alike(one: float, other: float) -> bool:
    return one == other or (one != one and other != other)
