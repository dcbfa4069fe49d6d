"""How many tensors and modules there are, and how large they are."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..lazy.tensor import Shape, Tensor


@dataclass(frozen=True, slots=True)
class Count:
    """So many tensors, elements and bytes."""

    tensors: int
    parameters: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Modules that an adapter can be put on, by last name: how many there are, and the shapes of their weights."""

    name: str
    modules: int
    shapes: tuple[Shape, ...]


def count(tensors: Iterable[Tensor]) -> Count:
    number = parameters = nbytes = 0
    for tensor in tensors:
        size = tensor.size
        number, parameters, nbytes = number + 1, parameters + size, nbytes + size * tensor.dtype.bits // 8
    return Count(number, parameters, nbytes)


def targets_of(modules: Mapping[str, Shape]) -> tuple[Target, ...]:
    """The modules with what is, or could be, added to each, by last name."""
    shapes: dict[str, Counter[Shape]] = defaultdict(Counter)
    for module, shape in modules.items():
        shapes[leaf_of(module)][shape] += 1
    return tuple(Target(leaf, sum(c.values()), tuple(sorted(c))) for leaf, c in sorted(shapes.items()))


def leaf_of(module: str) -> str:
    """A module's last name, with a number behind it; of a name that is one word, the numbers in it may be others."""
    parts = module.split(".")
    if len(parts) == 1:
        return re.sub(r"(?<=_)\d+(?=_|$)", "*", module)
    last = next((i for i in range(len(parts) - 1, -1, -1) if not parts[i].isdigit()), 0)
    return ".".join(parts[last:])
