"""What a merge replaces or drops, beside what earlier merges did: names that come again stand for both tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count

from ...lazy.tensor import Tensor, stored


def both(before: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All of `before` and `more`: where a name stands for another tensor already, the later one has its file before
    its name.
    """
    found = dict(before)
    for name, tensor in more.items():
        found[next(key for key in _keys(name, tensor) if found.get(key, tensor) == tensor)] = tensor
    return found


def replacements(
    before: Mapping[str, Tensor], dropped: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(replaced, dropped) once the tensors `now` have others in their places: what was put there by an earlier merge
    is dropped.
    """
    again = {name: tensor for name, tensor in now.items() if before.get(name, tensor) != tensor}
    return {**now, **before}, both(dropped, again)


def _keys(name: str, tensor: Tensor) -> Iterator[str]:
    path = next((leaf.file.path for leaf in stored(tensor)), "made")
    yield from (name, f"{path}: {name}")
    yield from (f"{path}: {name} ({number})" for number in count(2))
