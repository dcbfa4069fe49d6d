"""What was dropped by name: of a chain of surgeries, one name may stand for several tensors, of which none is lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from .tensor import Tensor, stored


def both(before: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of `before` and `more`: where a name stands for another tensor already, the later one has its file before
    its name.
    """
    found = dict(before)
    for name, tensor in more.items():
        found[next(key for key in _keys(name, tensor) if found.get(key, tensor) == tensor)] = tensor
    return found


def _keys(name: str, tensor: Tensor) -> Iterator[str]:
    path = next((leaf.file.path for leaf in stored(tensor)), "made")
    yield from (name, f"{path}: {name}")
    yield from (f"{path}: {name} ({number})" for number in count(2))
