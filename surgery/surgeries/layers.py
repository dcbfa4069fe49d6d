"""Layers kept, left out, repeated or in another order; config.json follows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ..checkpoint import Checkpoint
from ..errors import NothingMatched, NotSupported, SurgeryError, listed, series
from ..lazy.dropped import both
from ..models.layer_config import with_layers
from ..models.names_v5 import in_memory, renames_of
from ..models.stacks import numbered
from ..quantization.fused_names import lists_followed
from ..quantization.kept_whole import held_in
from ..quantization.quantised import quantised
from ..step import Option, step
from .asked_class import class_of
from .header_ties import along

_RANGE = re.compile(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*")
HOW = "numbers and ranges with both ends, such as 0-15,20-31"


@step
def layers(
    checkpoint: Checkpoint,
    *,
    keep: Annotated[str, Option("These layers alone, such as 0-15,20-31, in their order.", "RANGES")] = "",
    drop: Annotated[str, Option("All layers but these.", "RANGES")] = "",
    order: Annotated[str, Option("The layers as they are named here, repeated ones too.", "RANGES")] = "",
    stack: Annotated[str, Option("Where they are, such as model.layers, if that is not clear.", "NAME")] = "",
) -> Checkpoint:
    """Keep, leave out, repeat or reorder layers; config.json follows, and the class is asked.

        layers(checkpoint, keep="0-15,20-31")       # in their order
        layers(checkpoint, drop="16-19")            # all but these
        layers(checkpoint, order="0-11,4-15")       # as they are named, repeated ones too

    `stack` is where the layers are, such as "model.layers"; without it, the stack that is four times as large as any
    other. Moves no value: a repeated layer is written once for each place.

    The class of transformers is asked, on the meta device: each layer must be built, in its new place, as it was in
    its old one. Raises NotSupported where no config.json says so, SurgeryError for numbers that are not there,
    NothingMatched where nothing is numbered.
    """
    stack, there = _layers_of(checkpoint, stack)
    chosen = _order(stack, there, keep=keep, drop=drop, order=order)
    config = config_for(checkpoint, stack, there, chosen)
    made = along(checkpoint, lambda parted: moved(parted, stack, chosen)).with_config(config)
    made = _codes_checked(made, checkpoint, stack, chosen)
    note = f"{len(there)} layers of {stack} became {len(chosen)}: {_told(chosen)}"
    done = {"surgery": "layers", "stack": stack, "layers": chosen}
    return made.with_step(done, notes=(*made.notes, note))


def _layers_of(checkpoint: Checkpoint, stack: str) -> tuple[str, Sequence[int]]:
    """The stack that is meant, and the numbers of its layers. Raises NothingMatched, SurgeryError."""
    sizes, found = dict[str, int](), dict[str, set[int]]()
    for name, tensor in checkpoint.tensors.items():
        if place := numbered(name):
            sizes[place[0]] = sizes.get(place[0], 0) + tensor.nbytes
            found.setdefault(place[0], set()).add(place[1])
    known = series(listed(sorted(found, key=lambda one: -sizes[one])))
    if not found:
        raise NothingMatched("no tensor is in a numbered layer", where=[checkpoint.path])
    if stack and stack not in found:
        raise NothingMatched(f"no layers are called {stack}", where=[checkpoint.path], help=f"numbered are {known}")
    largest = stack or max(found, key=lambda one: sizes[one])
    if not stack and any(4 * size > sizes[largest] for one, size in sizes.items() if one != largest):
        raise SurgeryError(
            "there is more than one stack of layers", where=[checkpoint.path], help=f"say which with --stack: {known}"
        )
    return largest, sorted(found[largest])


def stack_of(checkpoint: Checkpoint) -> tuple[str, list[int]]:
    """The stack that is four times as large as any other, and the numbers of its layers. Raises what `layers` does."""
    stack, there = _layers_of(checkpoint, "")
    return stack, list(there)


def config_for(checkpoint: Checkpoint, stack: str, there: Sequence[int], order: Sequence[int]) -> dict[str, Any]:
    """The config of a model whose layers in a stack are those of these numbers. Raises what `layers` does."""
    model_class = class_of(checkpoint, "what a layer is in another place")
    return with_layers(checkpoint.config, model_class, _in_memory(checkpoint, stack), there, order)


def _order(stack: str, there: Sequence[int], **said: str) -> list[int]:
    """Which layer of the input each layer of the output is."""
    given = [(key, text) for key, text in said.items() if text]
    if len(given) != 1:
        raise SurgeryError(
            "which layers are meant is said in one way", help="one of --keep, --drop and --order, each with " + HOW
        )
    (key, text), *_ = given
    named = list(_numbers(key, text))
    if wrong := sorted(set(named) - set(there)):
        raise SurgeryError(
            f"there is no layer {series(listed(list(map(str, wrong))))} in {stack}",
            where=[f"--{key} {text}"],
            help=f"its layers are {_told(there)}",
        )
    chosen = {"keep": sorted(set(named)), "drop": [n for n in there if n not in named], "order": named}[key]
    if not chosen:
        raise SurgeryError(f"no layer of {stack} would be left", where=[f"--{key} {text}"])
    return chosen


def _numbers(key: str, text: str) -> Iterator[int]:
    for part in text.split(","):
        found = _RANGE.fullmatch(part)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last > 1_000_000:
            raise SurgeryError(f"`{part.strip()}` is no range of layers", where=[f"--{key} {text}"], help=HOW)
        yield from range(first, last + 1)


def _told(numbers: Sequence[int]) -> str:
    """Numbers as ranges."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return series(listed([str(a) if a == b else f"{a}-{b}" for a, b in runs], 12))


def _in_memory(checkpoint: Checkpoint, stack: str) -> str:
    """What the class calls the stack that the files call so."""
    renames = renames_of(checkpoint.config)
    name = next(name for name in checkpoint.tensors if name.startswith(f"{stack}."))
    place = numbered(in_memory(name, renames))
    return place[0] if place else stack


def moved(checkpoint: Checkpoint, stack: str, order: Sequence[int]) -> Checkpoint:
    """The checkpoint with layer `order[i]` of the stack as its layer i, and a config that knows nothing of it."""
    places = {name: places_of(name, stack, order) for name in checkpoint.tensors}
    return replace(
        checkpoint,
        tensors={new: tensor for name, tensor in checkpoint.tensors.items() for new in places[name]},
        weight_map={new: shard for name, shard in checkpoint.weight_map.items() for new in places[name]},
        dropped=both(checkpoint.dropped, {n: t for n, t in checkpoint.tensors.items() if not places[n]}),
    )


def places_of(name: str, stack: str, order: Sequence[int]) -> list[str]:
    """What a tensor is called afterwards: as before, where it is in none of these layers."""
    place = numbered(name)
    if place is None or place[0] != stack:
        return [name]
    end = f".{place[2]}" if place[2] else ""
    return [f"{stack}.{new}{end}" for new, old in enumerate(order) if old == place[1]]


def _codes_checked(made: Checkpoint, before: Checkpoint, stack: str, order: Sequence[int]) -> Checkpoint:
    """`made`, in which what was quantised still is, and nothing else. Raises NotSupported."""
    held = held_in(before)
    if not held.weights:
        return made
    new: Mapping[str, list[str]] = {name: places_of(name, stack, order) for name in before.tensors}
    once = {old: names[0] for old, names in new.items() if len(names) == 1}
    made = lists_followed(made, before, once)
    wanted = {place for name in held.weights for place in places_of(name, stack, order)}
    if set(quantised(made).weights) != wanted:
        raise NotSupported(
            "config.json would say of other layers that they are quantised",
            where=[before.path],
            help="write it in 16 bits first: surgery dequantize",
        )
    return made
