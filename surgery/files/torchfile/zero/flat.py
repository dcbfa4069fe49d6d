"""Weights that lie one after another in flat vectors, which are cut over ranks: each is a piece of these, reshaped.

    stages 1, 2    group g is one vector, cut into as many parts as there are ranks; its weights follow each other in
                   it. The end is padded to a multiple of twice the ranks, and cut off again in some files
    stage 3        each weight is cut by itself: rank r has its elements [r*m, r*m + m), m = ceil(n / ranks), the last
                   padded; in each rank's vectors the parts of all weights follow each other

Source: deepspeed 0.19.8, utils/zero_to_fp32.py `_zero2_merge_trainable_params`, `_zero3_merge_trainable_params`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate

from ....errors import FormatError, LayoutError, series
from ....lazy.tensor import Shape, Stored, Tensor, concat, reshape
from ..reader import Raw, tensor_of
from ..storages import Described
from .states import Model, Optimizer

_SAVES = "they are files of different saves, or a rank's is damaged: keep those of one save in the folder"


class Flat:
    """Vectors of one dtype one after another, as one. Raises FormatError where they are of several."""

    def __init__(self, parts: Sequence[Stored]) -> None:
        if other := next((part for part in parts if part.dtype != parts[0].dtype), None):
            what = f"a part of the weights is {other.dtype}, and another one {parts[0].dtype}"
            raise FormatError(what, where=[other.file.path, parts[0].file.path], help=_SAVES)
        self.parts = parts
        self.begins = [0, *accumulate(part.size for part in parts)]

    @property
    def size(self) -> int:
        """Elements of all."""
        return self.begins[-1]

    def pieces(self, start: int, count: int) -> Iterator[Stored]:
        """Elements [start, start + count), part by part."""
        stop, at = start + count, bisect_right(self.begins, start) - 1
        while start < stop:
            part, begin = self.parts[at], self.begins[at]
            end = min(stop, begin + part.size)
            if end > start:
                skipped = (start - begin) * part.dtype.bits // 8
                yield Stored(part.dtype, (end - start,), part.file, part.offset + skipped)
                start = end
            at += 1

    def taken(self, start: int, shape: Shape) -> Tensor:
        """The tensor whose elements begin at `start`."""
        return joined([*self.pieces(start, math.prod(shape))], self.parts[0], shape)


def joined(pieces: Sequence[Stored], like: Stored, shape: Shape) -> Tensor:
    """The pieces as one tensor of `shape`; of the dtype of `like` where there are none."""
    if len(pieces) == 1:
        return Stored(pieces[0].dtype, shape, pieces[0].file, pieces[0].offset)
    if not pieces:
        return Stored(like.dtype, shape, like.file, like.offset)
    return reshape(concat(pieces, 0), shape)


def vector(raw: Raw, one: Described, name: str) -> Stored:
    """A part of a vector, which lies in its file without a gap. Raises FormatError."""
    made = tensor_of(raw, one, name)
    if not isinstance(made, Stored) or len(made.shape) != 1:
        raise FormatError("a part of the weights does not lie in one piece", where=[f"{raw.file.path}: {name}"])
    return made


def weights_of_groups(model: Model, ranks: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The weights of stages 1 and 2. Raises FormatError where vectors and shapes do not fit each other."""
    groups = model.groups or ()
    where = [ranks[0].raw.file.path]
    if any(len(rank.vectors) != len(groups) for rank in ranks):
        said = series(sorted({str(len(rank.vectors)) for rank in ranks}))
        raise FormatError(f"the ranks have {said} vectors, and the model {len(groups)}", where=where, help=_SAVES)
    found: dict[str, Tensor] = {}
    for place, shapes in enumerate(groups):
        flat = Flat([vector(rank.raw, rank.vectors[place], f"vector {place}") for rank in ranks])
        places, end = _placed(shapes, ranks[0], place, where)
        align = 2 * len(ranks)
        if end > flat.size or -(-end // align) != -(-flat.size // align):
            what = f"the weights of group {place} take {end} elements, and the ranks' parts have {flat.size}"
            raise FormatError(what, where=[model.raw.file.path, *where], help=_SAVES)
        _check_slices(flat, places, shapes, ranks, place)
        for name, start in places.items():
            _add(found, name, flat.taken(start, shapes[name]), model)
    return found


def _placed(
    shapes: Mapping[str, Shape], first: Optimizer, place: int, where: Sequence[str]
) -> tuple[dict[str, int], int]:
    """Where each weight of a group begins in its vector, and where the last one ends."""
    after = first.paddings[place] if first.paddings and place < len(first.paddings) else (0,) * len(shapes)
    if len(after) != len(shapes) or min(after, default=0) < 0:
        raise FormatError(f"group {place} has {len(shapes)} weights, and {len(after)} paddings", where=where)
    places, at = dict[str, int](), 0
    for (name, shape), padding in zip(shapes.items(), after, strict=True):
        places[name] = at
        at += math.prod(shape) + padding
    return places, at


def _check_slices(
    flat: Flat, places: Mapping[str, int], shapes: Mapping[str, Shape], ranks: Sequence[Optimizer], place: int
) -> None:
    """Raise FormatError where a rank says that a weight begins elsewhere in its part, or is longer there.

    With round_robin_gradients DeepSpeed says where it lay before the vectors were ordered anew: names alone count then.
    """
    for rank, begin in zip(ranks, flat.begins, strict=False):
        said = rank.slices[place] if place < len(rank.slices) else {}
        for name, (start, count) in said.items():
            if name not in places:
                what = f"the rank has a part of {name}, and the model has no such weight in group {place}"
                raise FormatError(what, where=[rank.raw.file.path], help=_SAVES)
            first = max(places[name], begin)
            last = places[name] + math.prod(shapes[name])
            if count and rank.in_order and (start != first - begin or count > last - first):
                what = f"{name} has {count} elements from {start} on in the rank's part, and belongs at {first - begin}"
                raise FormatError(what, where=[rank.raw.file.path], help=_SAVES)


def weights_of_pieces(model: Model, ranks: Sequence[Optimizer]) -> dict[str, Tensor]:
    """The weights of stage 3. Raises FormatError where vectors and shapes do not fit each other."""
    flats = [Flat([vector(r.raw, one, f"vector {i}") for i, one in enumerate(r.vectors)] or [_none(r)]) for r in ranks]
    found, at = dict[str, Tensor](), 0
    shapes = [(name, shape) for group in model.groups or () for name, shape in group.items()]
    needed = sum(-(-math.prod(shape) // len(ranks)) for _, shape in shapes)
    for rank, flat in zip(ranks, flats, strict=True):
        if flat.size != needed:
            what = f"the weights take {needed} elements of each rank's, and this one has {flat.size}"
            raise FormatError(what, where=[rank.raw.file.path], help=_SAVES)
    for name, shape in shapes:
        part = -(-math.prod(shape) // len(ranks))
        pieces = [(flat, at) for flat in flats]
        _add(found, name, _cut(pieces, part, shape, model, name), model)
        at += part
    return found


def frozen_pieces(models: Sequence[Model]) -> dict[str, Tensor]:
    """Stage 3's frozen weights, a piece of each in every rank's file of model states. Raises FormatError."""
    found: dict[str, Tensor] = {}
    for name, shape in (models[0].frozen or {}).items():
        part = -(-math.prod(shape) // len(models))
        flats = []
        for model in models:
            if name not in model.fragments or model.fragments[name].shape != (part,):
                said = f"one of {model.fragments[name].shape}" if name in model.fragments else "none"
                where = [f"{model.raw.file.path}: {name}"]
                what = f"a piece of {part} elements belongs there, and there is {said}"
                raise FormatError(what, where=where, help=_SAVES)
            flats.append((Flat([vector(model.raw, model.fragments[name], name)]), 0))
        found[name] = _cut(flats, part, shape, models[0], name)
    return found


def _cut(flats: Sequence[tuple[Flat, int]], part: int, shape: Shape, model: Model, name: str) -> Tensor:
    """The first elements of the parts, one after another: the last ones are padding."""
    left, pieces = math.prod(shape), list[Stored]()
    for flat, at in flats:
        pieces += flat.pieces(at, min(left, part))
        left -= min(left, part)
    try:
        return joined(pieces, flats[0][0].parts[0], shape)
    except LayoutError as error:
        where = [f"{model.raw.file.path}: {name}"]
        raise FormatError(f"the ranks' parts do not fit each other: {error.what}", where=where, help=_SAVES) from None


def _none(rank: Optimizer) -> Stored:
    raise FormatError("no part of the weights is in the optimizer states", where=[rank.raw.file.path], help=_SAVES)


def _add(found: dict[str, Tensor], name: str, tensor: Tensor, model: Model) -> None:
    if name in found:
        raise FormatError("a weight is in two vectors", where=[f"{model.raw.file.path}: {name}"], help=_SAVES)
    found[name] = tensor
