"""The modules of a checkpoint as a tree, by the dots of its tensors' names; parts of tensors, as they are typed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import WrongUsage
from ..lazy.tensor import Shape, Tensor, narrow
from ..names import natural


@dataclass(slots=True)
class Module:
    """A module: what it is called, the modules and the tensors right inside it, and what all below it amounts to."""

    path: str
    modules: dict[str, Module] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)  # last name -> name
    count: int = 0
    nbytes: int = 0


def module_tree(tensors: Mapping[str, Tensor]) -> Module:
    """The tree of all tensors, each level in natural order."""
    top = Module("")
    for name in sorted(tensors, key=natural):
        *parts, last = name.split(".")
        here, nbytes = top, tensors[name].nbytes
        _add(here, nbytes)
        for part in parts:
            inner = here.modules.get(part)
            if inner is None:
                inner = here.modules[part] = Module(f"{here.path}.{part}" if here.path else part)
            here = inner
            _add(here, nbytes)
        here.tensors[last] = name
    return top


def _add(module: Module, nbytes: int) -> None:
    module.count += 1
    module.nbytes += nbytes


def part_of(tensor: Tensor, text: str, most: Sequence[int] = (8, 8)) -> Tensor:
    """The part of a tensor that a text names, such as `0:4, 8:16`, an axis after the other, or `3` for one entry.

    Axes that are not named are taken whole, but the last ones up to as many entries as `most` says. Raises WrongUsage
    for what is no such text, or lies outside.
    """
    said = [one.strip() for one in text.split(",")] if text.strip() else []
    shape = tensor.shape
    if len(said) > len(shape):
        raise WrongUsage(f"{len(said)} axes are named, and the tensor has {len(shape)}", help="such as 0:4, 8:16")
    for axis, size in enumerate(shape):
        start, stop = _range(said[axis], size) if axis < len(said) and said[axis] else (0, _usual(axis, shape, most))
        tensor = narrow(tensor, axis, start, stop - start)
    return tensor


def _usual(axis: int, shape: Shape, most: Sequence[int]) -> int:
    behind = len(shape) - axis
    return min(shape[axis], most[-behind] if behind <= len(most) else 1)


def _range(text: str, size: int) -> tuple[int, int]:
    begin, colon, end = (part.strip() for part in text.partition(":"))
    try:
        start = int(begin) if begin else 0
        stop = start + 1 if not colon else int(end) if end else size
    except ValueError as error:
        raise WrongUsage(f"`{text}` is no range of an axis", help="such as 0:4, or 3") from error
    if not 0 <= start < stop <= size:
        raise WrongUsage(f"`{text}` lies outside an axis of {size} entries", help=f"from 0 to {size}")
    return start, stop
