"""What each tensor of a blend is made of: tensors of the same name, or, in slices, of layers of several models one
after another.

    slices: ["1:0-15", "2:8-31"]       layers 0 to 15 of the first model, then 8 to 31 of the second
            ["1:0-7+2:0-7"]            layers 0 to 7 of both, blended
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...checkpoint import Checkpoint
from ...errors import PlanError, SurgeryError
from ...models.stacks import numbered
from .said import Place

HOW = "MODEL:FIRST-LAST[+MODEL:FIRST-LAST…], models counted from 1, layers from 0, both ends included"
_PART = re.compile(r"\s*(\d+)\s*:\s*(\d+)\s*(?:-\s*(\d+)\s*)?")
BEFORE = re.compile(r"embed|wte|wpe|position|rotary|rope")  # what stands before the layers, and is no head
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output)\.")


@dataclass(frozen=True, slots=True)
class Slice:
    """The same number of layers of one or more models: (model, from 0; its first layer)."""

    sources: tuple[tuple[int, int], ...]
    layers: int


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of the output: its place, and the tensors that it is made of, (model, from 0; name there)."""

    place: Place
    sources: tuple[tuple[int, str], ...]


def slices_of(texts: Sequence[str], models: int) -> list[Slice]:
    """What was said, parsed. Raises SurgeryError."""
    found = []
    for text in texts:
        parts = [_PART.fullmatch(part) for part in text.split("+")]
        if None in parts:
            raise SurgeryError(f"`{text}` is no slice", help=HOW)
        said = [(int(part[1]), int(part[2]), int(part[3] or part[2])) for part in parts if part]
        lengths = {last - first + 1 for _, first, last in said}
        if len(lengths) != 1 or min(lengths) < 1:
            raise SurgeryError(f"the parts of `{text}` are not of the same number of layers", help=HOW)
        if wrong := [model for model, _, _ in said if not 1 <= model <= models]:
            raise SurgeryError(f"there is no model {wrong[0]}: they are {models}", where=[text], help=HOW)
        found.append(Slice(tuple((model - 1, first) for model, first, _ in said), lengths.pop()))
    return found


def as_named(models: Sequence[Checkpoint]) -> Iterator[Made]:
    """Each tensor of the first, of those of its name in all."""
    counts = dict[str, int]()
    for name in models[0].tensors:
        if at := numbered(name):
            counts[at[0]] = max(counts.get(at[0], 0), at[1] + 1)
    for name in models[0].tensors:
        at = numbered(name)
        many = counts[at[0]] if at else 0
        way = 0.0 if at is None else at[1] / (many - 1) if many > 1 else 1.0
        yield Made(Place(name, way), tuple((i, name) for i in range(len(models))))


def in_slices(models: Sequence[Checkpoint], slices: Sequence[Slice], stack: str) -> Iterator[Made]:
    """Each tensor of layers in slices, and what is before and after them, of the models of the first slice and of the
    last.
    """
    layers = [_layers(one, stack) for one in models]
    for name in models[slices[0].sources[0][0]].tensors:
        if not _in_stack(name, stack):
            first = bool(BEFORE.search(name)) and not HEAD.search(name)
            number, one = (1, slices[0]) if first else (len(slices), slices[-1])
            yield Made(Place(name, 0.0, number), tuple((model, name) for model, _ in one.sources))
    new = 0
    for number, one in enumerate(slices, 1):
        for offset in range(one.layers):
            way = offset / (one.layers - 1) if one.layers > 1 else 1.0
            sources = [(model, first + offset) for model, first in one.sources]
            for model, layer in sources:
                _check_layer(models[model], layers[model], layer, stack)
            for rest in layers[sources[0][0]][sources[0][1]]:
                end = f".{rest}" if rest else ""
                place = Place(f"{stack}.{new}{end}", way, number)
                yield Made(place, tuple((model, f"{stack}.{layer}{end}") for model, layer in sources))
            new += 1


def _in_stack(name: str, stack: str) -> bool:
    at = numbered(name)
    return at is not None and at[0] == stack


def _layers(checkpoint: Checkpoint, stack: str) -> Mapping[int, list[str]]:
    """What the tensors of each layer are called in it."""
    found: dict[int, list[str]] = {}
    for name in checkpoint.tensors:
        if (at := numbered(name)) and at[0] == stack:
            found.setdefault(at[1], []).append(at[2])
    return found


def _check_layer(checkpoint: Checkpoint, layers: Mapping[int, list[str]], layer: int, stack: str) -> None:
    if layer not in layers:
        raise PlanError(
            f"there is no layer {layer} in {stack}",
            where=[checkpoint.path],
            help=f"its layers are {min(layers)} to {max(layers)}" if layers else "it has none of that name",
        )
