"""What predicts a tensor, as JSON: a tree of lazy tensors over the written one, `after`, and tensors that the record
keeps.

    "after"                    the written tensor
    "kept.3"                   a tensor of the record
    {"reshape": tree, …}       movement over a tree; narrow, permute and concat alike
    {"before": tree, …}        a sum undone, with what it did to its base

A delta is `{"kind": its name in evaluation/kinds.py}` with its fields, as a gain is. The first two kinds are written
shorter: `[left, right, scale]` and `[value, null, scale]`, and so is DoRA's gain: `[magnitude, norms, columns]`.
Numbers are hexadecimal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from ..evaluation.kinds import DELTAS, GAINS, NAMES
from ..lazy.change import Change, Delta
from ..lazy.dense import Dense
from ..lazy.dtypes import DTYPES
from ..lazy.gain import Gain
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Before, Concat, Narrow, Permute, Reshape, Tensor, concat, narrow, permute, reshape

DEEPEST = 100  # objects and lists within each other in a tree; one of ours has some ten
Encode = Callable[[Tensor], Any]
Decode = Callable[[Any], Tensor]


def encoded(tensor: Tensor, named: Callable[[Tensor], str | None], keep: Encode) -> Any:
    """The tree as JSON; `named` says what a tensor is called already, and `keep` calls a leaf something."""
    if name := named(tensor):
        return name

    def inner(child: Tensor) -> Any:
        return encoded(child, named, keep)

    match tensor:
        case Reshape(base, shape):
            return {"reshape": inner(base), "shape": list(shape)}
        case Narrow(base, axis, start, length):
            return {"narrow": inner(base), "axis": axis, "start": start, "length": length}
        case Permute(base, axes):
            return {"permute": inner(base), "axes": list(axes)}
        case Concat(parts, axis):
            return {"concat": [inner(part) for part in parts], "axis": axis}
        case Before(dtype, under, deltas, gain):
            changes = {"deltas": [change_out(d, inner) for d in deltas], "gain": gain and change_out(gain, inner)}
            return {"before": inner(under), "dtype": str(dtype), **changes}
    return keep(tensor)


def decoded(tree: Any, named: Callable[[str], Tensor]) -> Tensor:
    """The lazy tensor that `encoded` wrote. Raises KeyError, TypeError, ValueError or LayoutError for anything else."""

    def inner(child: Any) -> Tensor:
        return decoded(child, named)

    match tree:
        case str(name):
            return named(name)
        case {"reshape": base, "shape": shape}:
            return reshape(inner(base), shape)
        case {"narrow": base, "axis": axis, "start": start, "length": length}:
            return narrow(inner(base), axis, start, length)
        case {"permute": base, "axes": axes}:
            return permute(inner(base), axes)
        case {"concat": parts, "axis": axis}:
            return concat([inner(part) for part in parts], axis)
        case {"before": base, "dtype": dtype, "deltas": deltas, "gain": gain}:
            under, made = inner(base), tuple(delta_in(delta, inner) for delta in deltas)
            factor = gain_in(gain, inner) if gain else None
            for change in (*made, *([factor] if factor else [])):
                change.check(under.shape)
            return Before(DTYPES[dtype], under, made, factor)
    raise ValueError(f"not a tensor: {tree!r}")


def check_depth(tree: Any) -> None:
    """Raise ValueError for JSON that nests deeper than any tree of ours, before it is walked down."""
    level, depth = [tree], 0
    while level := [
        inner
        for one in level
        if isinstance(one, dict | list)
        for inner in (one.values() if isinstance(one, dict) else one)
    ]:
        if (depth := depth + 1) > DEEPEST:
            raise ValueError(f"a tree of more than {DEEPEST} levels")


def change_out(change: Change, inner: Encode) -> Any:
    """A delta or a gain as JSON."""
    match change:
        case LowRank(left, right, scale):
            return [inner(left), inner(right), scale.hex()]
        case Dense(value, scale):
            return [inner(value), None, scale.hex()]
        case Gain(magnitude, norms, columns):
            return [inner(magnitude), norms and inner(norms), columns]
    values = {field.name: getattr(change, field.name) for field in fields(cast(Any, change))}
    return {"kind": NAMES[type(change)], **{name: _plain(value, inner) for name, value in values.items()}}


def delta_in(tree: Any, inner: Decode) -> Delta:
    """The delta that `change_out` wrote."""
    match tree:
        case [value, None, str(scale)]:
            return Dense(inner(value), float.fromhex(scale))
        case [left, right, str(scale)]:
            return LowRank(inner(left), inner(right), float.fromhex(scale))
        case {"kind": str(name), **values}:
            return DELTAS[name].kind(**_fields(values, inner))
    raise ValueError(f"not a delta: {tree!r}")


def gain_in(tree: Any, inner: Decode) -> Change:
    """The gain that `change_out` wrote."""
    match tree:
        case [magnitude, norms, bool(columns)]:
            return Gain(inner(magnitude), norms and inner(norms), columns)
        case {"kind": str(name), **values}:
            return GAINS[name].kind(**_fields(values, inner))
    raise ValueError(f"not a gain: {tree!r}")


def _fields(values: dict[Any, Any], inner: Decode) -> dict[str, Any]:
    return {str(key): _rich(value, inner) for key, value in values.items()}


def _plain(value: Any, inner: Encode) -> Any:
    """A field of a change as JSON: a tensor, another change, a number, a flag, a text, several of them, or nothing."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return {"number": value.hex()}
        case tuple():
            return [_plain(one, inner) for one in value]
        case str():
            return {"text": value}
    if type(value) in NAMES:
        return {"change": change_out(value, inner)}
    return {"tensor": inner(value)}


def _rich(value: Any, inner: Decode) -> Any:
    """The field that `_plain` wrote."""
    match value:
        case {"number": str(number)}:
            return float.fromhex(number)
        case {"tensor": tree}:
            return inner(tree)
        case {"change": tree}:
            return delta_in(tree, inner)
        case {"text": str(text)}:
            return text
        case list():
            return tuple(_rich(one, inner) for one in value)
        case None | bool() | int():
            return value
    raise ValueError(f"not a field: {value!r}")
