"""The tensors of a report as data, small enough for a page: names as patterns and numbers, columns beside columns."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..checks.change_map import ChangeMap, Moved
from ..errors import printable
from ..lazy.tensor import Tensor
from ..names import natural
from ..units import extent

_NUMBER = re.compile(r"(?<![0-9])(0|[1-9][0-9]{0,8})(?![0-9])")
OF_A_ROW = 17  # bytes that the numbers of patterns, kinds, shards and verdicts take, at most
INFINITE = -1  # what stands for infinity, of which JSON has none


@dataclass
class _Numbered:
    """Values, and their place among those that were met."""

    known: dict[Any, int] = field(default_factory=dict)

    def __call__(self, value: Any) -> int:
        return self.known.setdefault(value, len(self.known))


def tensor_rows(
    tensors: Mapping[str, Tensor],
    shards: Mapping[str, str],
    changes: ChangeMap | None,
    verdicts: Mapping[str, str],
    room: int,
) -> dict[str, Any]:
    """The tensors in columns, those that changed first where there is no room for all; `left` are not there.

    A name is a pattern, its parts between numbers, and these numbers.
    """
    moved = {one.name: one for one in changes.tensors} if changes else {}
    names = sorted({*tensors, *moved, *verdicts}, key=natural)
    taken = _fitting(names, moved, room)
    patterns, kinds, files, said = _Numbered(), _Numbered(), _Numbered(), _Numbered()
    rows: dict[str, list[Any]] = {key: [] for key in "TNKSRCEQV"}
    for name in taken:
        shown = printable(name)
        rows["T"].append(patterns(tuple(_NUMBER.split(shown)[::2])))
        rows["N"] += map(int, _NUMBER.findall(shown))
        rows["K"].append(kinds(_kind(tensors.get(name), moved.get(name))))
        rows["S"].append(files(printable(shards.get(name, ""))))
        for key, value in zip("RCEQ", _values(moved.get(name)), strict=True):
            rows[key].append(value)
        rows["V"].append(said(verdicts.get(name, "")))
    kept = {key: column for key, column in rows.items() if key not in "RCEQ" or changes}
    return {
        **(kept if verdicts else {key: column for key, column in kept.items() if key != "V"}),
        "patterns": list(patterns.known),
        "kinds": list(kinds.known),
        "shards": list(files.known),
        "verdicts": list(said.known),
        "merging": bool(changes and changes.merging),
        "left": len(names) - len(taken),
    }


def _fitting(names: Sequence[str], moved: Mapping[str, Moved], room: int) -> list[str]:
    """As many names as there is room for, in order."""
    patterns, taken = set[str](), list[str]()
    for name in sorted(names, key=lambda n: n not in moved or not moved[n].changed):
        pattern = _NUMBER.sub("0", printable(name))
        cost = OF_A_ROW + sum(len(number) + 1 for number in _NUMBER.findall(name))
        cost += sum(5 if value is None else len(repr(value)) + 1 for value in _values(moved.get(name))) if moved else 0
        cost += 0 if pattern in patterns else 6 * len(pattern) + 4
        if cost > room:
            continue
        room -= cost
        patterns.add(pattern)
        taken.append(name)
    return sorted(taken, key=natural)


def _kind(tensor: Tensor | None, moved: Moved | None) -> tuple[str, str, int]:
    """Dtype, shape and bytes; of a weight that lies there as codes, what it means, and no bytes of its own."""
    if tensor is not None:
        return tensor.dtype.name, extent(tensor.shape), tensor.nbytes
    return (f"{moved.dtype}, from codes", extent(moved.shape), 0) if moved else ("", "", 0)


def _values(moved: Moved | None) -> list[float | None]:
    """Size of the change, shares changed and erased, effective rank."""
    if moved is None or moved.spread is None:
        return [None] * 4
    s = moved.spread
    erased = None if not s.meant or s.erased is None else s.erased / s.meant
    return [_short(value) for value in (moved.relative, s.differing / max(1, s.elements), erased, s.rank)]


def _short(value: float | None) -> float | None:
    """Three digits."""
    if value is None or math.isnan(value):
        return None
    if math.isinf(value):
        return INFINITE
    shown = float(f"{value:.3g}")
    return int(shown) if shown == int(shown) else shown
