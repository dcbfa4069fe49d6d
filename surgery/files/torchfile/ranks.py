"""One file a rank, of DTensors: `model_world_size_N_rank_R.pt`, as verl, SkyRL and others write them.

A rank's file holds its own piece of each tensor, and how the mesh of ranks was laid over it: an axis of the mesh cuts
an axis of the tensor (`Shard`), or all its ranks hold the same (`Replicate`). A tensor is its pieces, joined.
Source: torch 2.13, torch/distributed/tensor/_api.py `__tensor_flatten__`, device_mesh.py, placement_types.py.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import FormatError, LayoutError, NotSupported, listed, series
from ...lazy.tensor import Stored, Tensor, concat
from ..folder import Folder
from ..opened import SHARD, Opened, leaves_of
from ..opening import regular
from ..same_bytes import same_bytes
from ..strict import MEND
from .parts import chosen
from .reader import Raw, raw_of, tensor_of
from .records import Call, Global, Leaf, text, told
from .storages import Described, Unreadable, described, sizes_of

CALLED = re.compile(r"(?P<stem>model_|model_states_|)world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt")
_MOST = 1_000_000  # ranks
_PLACEMENTS = "torch.distributed.tensor.placement_types"


@dataclass(frozen=True, slots=True)
class Mesh:
    """Ranks in a grid: the one at a place is entry sum(place * steps) of `ranks`, or of a tensor that holds them."""

    shape: tuple[int, ...]
    steps: tuple[int, ...]
    ranks: tuple[int, ...] = ()
    held: Described | None = field(default=None, compare=False)  # of each file by itself


@dataclass(frozen=True, slots=True)
class Piece(Leaf):
    """A rank's piece of a tensor: `cuts` says for each axis of the mesh which axis of the tensor it cuts, or None, and
    `order` which axis cuts first.
    """

    local: Described
    shape: tuple[int, ...]
    mesh: Mesh
    cuts: tuple[int | None, ...]
    order: tuple[int, ...]


def ranks_in(folder: Folder) -> dict[int, str]:
    """The files of the ranks; none where there are none. Raises FormatError where some are missing."""
    found = [match for name in folder.names() if (match := CALLED.fullmatch(name))]
    files = {int(match["rank"]): match[0] for match in found}
    worlds = {int(match["world"]) for match in found}
    if found and not (len(worlds) == 1 and len(found) == len(files) == max(files) + 1 == min(worlds)):
        tip = "fetch the missing ones, and keep those of one save alone in the folder"
        where = [folder.path, *listed(sorted(files.values()))]
        raise FormatError(f"these are not the files of {min(worlds)} ranks", where=where, help=tip)
    return dict(sorted(files.items()))


def read_ranks(folder: Folder, files: Mapping[int, str], key: str) -> Opened:
    """The whole tensors. Raises FormatError, NotSupported."""
    raws = [raw_of(folder.file(name).path) for name in files.values()]
    found = [chosen(_marked(raw.root), raw.file.path, key) for raw in raws]
    names = list(found[0].tensors)
    for raw, one in zip(raws, found, strict=True):
        if list(one.tensors) != names or one.unreadable:
            rows = listed([*one.unreadable, *sorted(set(names) ^ one.tensors.keys())])
            raise FormatError("the ranks do not hold the same tensors", where=[raw.file.path, *rows], help=MEND)
    tensors, copies = dict[str, Tensor](), list[str]()
    spread = any(isinstance(one, Piece) for one in found[0].tensors.values())
    for name in names:
        each = [one.tensors[name] for one in found]
        if spread and len(each) > 1 and all(isinstance(one, Described) for one in each):
            tensors[name] = _copy(name, each, raws)
            copies.append(name)
        else:
            tensors[name] = _whole(name, each, raws)
    leaves, partly = leaves_of(tensors)
    own = frozenset(name for name in folder.names() if "world_size_" in name and name.endswith(".pt"))
    whole = tuple(raw.file for raw in raws)
    what = f"the files of {len(files)} ranks"
    return Opened(
        what, whole, tensors, dict.fromkeys(tensors, SHARD), leaves, own, partly, (*found[0].told(), *_same(copies))
    )


def _whole(name: str, held: Sequence[Leaf], raws: Sequence[Raw]) -> Tensor:
    where = [f"{raws[0].file.path}: {name}"]
    if all(isinstance(one, Described) for one in held):
        tip = "save it again as DTensors, or join it with the program that wrote it"
        what = "a tensor is in every rank's file, and nothing says whether these are pieces or copies"
        if len(held) > 1:
            raise NotSupported(what, where=where, help=tip)
        return tensor_of(raws[0], held[0], name)  # type: ignore[arg-type]
    pieces = [one for one in held if isinstance(one, Piece)]
    first = pieces[0]
    alike = {(one.shape, one.mesh, one.cuts, one.order) for one in pieces}
    if len(pieces) != len(held) or len(alike) > 1 or len(held) % math.prod(first.mesh.shape):
        raise FormatError("the ranks do not say the same of a tensor", where=where, help="keep one save in the folder")
    ranks = _ranks(first.mesh, raws[0], where)
    if len(set(ranks)) != len(ranks) or not set(ranks) <= set(range(len(held))):
        what = (
            f"its mesh names the ranks {series(listed([str(rank) for rank in ranks]))}, and {len(held)} files are here"
        )
        raise FormatError(what, where=where, help="keep one save in the folder")

    def part(done: int, fixed: tuple[int, ...]) -> Tensor:
        """The tensor of those ranks whose places on the first `done` axes of the mesh are `fixed`, in their order."""
        if done == len(first.order):
            at = sum(place * first.mesh.steps[axis] for axis, place in zip(first.order, fixed, strict=True))
            return tensor_of(raws[ranks[at]], pieces[ranks[at]].local, name)
        axis = first.order[done]
        cut = first.cuts[axis]
        if cut is None:
            return part(done + 1, (*fixed, 0))
        parts = [part(done + 1, (*fixed, place)) for place in range(first.mesh.shape[axis])]
        return concat([one for one in parts if one.size] or parts[:1], cut)

    try:
        made = part(0, ())
    except LayoutError as error:
        raise FormatError(f"the ranks' pieces make no tensor: {error.what}", where=where, help=MEND) from None
    if made.shape != first.shape:
        raise FormatError(f"the ranks' pieces make {made.shape}, and not {first.shape}", where=where, help=MEND)
    return made


def _marked(value: Any, seen: dict[int, Any] | None = None, depth: int = 0) -> Any:
    """The records with each DTensor as a piece; what lies at several places is one, as it was."""
    seen = {} if seen is None else seen
    if isinstance(value, Call) and id(value) not in seen and (piece := _piece(value)) is not None:
        seen[id(value)] = piece
    held = value.entries if isinstance(value, Call) else value
    if id(value) in seen or not isinstance(held, dict) or not held or depth >= 64:
        return seen.get(id(value), value)
    made = seen[id(value)] = dict[Any, Any]()
    made.update((key, _marked(child, seen, depth + 1)) for key, child in held.items())
    return made


def _piece(value: Call) -> Piece | None:
    """The piece that a record describes; None for what is no DTensor. Raises NotSupported."""
    args = value.args
    of_type = isinstance(value.function, Global) and value.function.name == "_rebuild_from_type_v2"
    if not (of_type and isinstance(args, tuple) and len(args) == 4 and text(args[1]).endswith(".DTensor")):
        return None
    state = args[3][1] if isinstance(args[3], tuple) and len(args[3]) == 2 else args[3]
    try:
        if not isinstance(state, dict):
            raise Unreadable("a DTensor without its piece")
        local, spec = described(state.get("_local_tensor")), _state(state.get("_spec"))
        if not isinstance(local, Described):
            raise Unreadable("a DTensor without its piece")
        meta = spec.get("tensor_meta")
        shape = sizes_of(
            meta.args[0] if isinstance(meta, Call) and isinstance(meta.args, tuple) and meta.args else None
        )
        placements = spec.get("placements")
        if not isinstance(placements, tuple | list):
            raise Unreadable("a DTensor whose placements are not said")
        for entry in spec.get("shard_order") or ():
            cuts = entry.args[1] if isinstance(entry, Call) and isinstance(entry.args, tuple) and entry.args[1:] else ()
            if list(cuts) != sorted(cuts):
                raise Unreadable("a DTensor that is cut in another order than its mesh has")
        mesh = _mesh(_state(spec.get("mesh")), len(placements))
        cuts = tuple(_cut(one, len(shape)) for one in placements)
        return Piece(local, shape, mesh, cuts, _order(placements, cuts, mesh.shape))
    except Unreadable as error:
        tip = "join it with the program that wrote it, and pass the result"
        raise NotSupported(f"a piece of a tensor cannot be placed: {error}", help=tip) from None


def _mesh(state: Mapping[str, Any], axes: int) -> Mesh:
    """The mesh that a tensor is spread over, which may be a part of a larger one."""
    layout = _state(state["_layout"]) if "_layout" in state else None
    if layout is None:
        held = described(state.get("mesh"))
        if not isinstance(held, Described) or len(held.shape) != axes:
            raise Unreadable("a mesh whose shape is not said")
        return Mesh(held.shape, tuple(math.prod(held.shape[i + 1 :]) for i in range(axes)), held=held)
    flat = [_state(one) for one in layout.get("axes", ())] or _axes(layout)
    shapes = [sizes_of(_tuple(one.get("shape"))) for one in flat]
    steps = [sizes_of(_tuple(one.get("stride"))) for one in flat]
    sizes = [math.prod(one) for one in shapes]
    if len(shapes) != axes or any(
        size > 1 and (len(one), len(step)) != (1, 1) for size, one, step in zip(sizes, shapes, steps, strict=True)
    ):
        raise Unreadable("a mesh whose axes are made of several")
    ranks = state.get("_flatten_rank_map")
    if not (isinstance(ranks, tuple) and all(type(rank) is int for rank in ranks)):
        raise Unreadable("a mesh whose ranks are not said")
    return Mesh(tuple(sizes), tuple(step[0] if size > 1 else 0 for size, step in zip(sizes, steps, strict=True)), ranks)


def _axes(layout: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The axes of a layout that says shapes and strides in one."""
    shape, stride = _tuple(layout.get("shape")), _tuple(layout.get("stride"))
    if not (isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)):
        raise Unreadable("a mesh whose shape is not said")
    return [{"shape": size, "stride": step} for size, step in zip(shape, stride, strict=True)]


def _ranks(mesh: Mesh, raw: Raw, where: Sequence[str]) -> Sequence[int]:
    """The ranks of a mesh by entry, those of no place there left out. Raises FormatError."""
    known: Sequence[int] = mesh.ranks
    if mesh.held is not None:
        tensor = tensor_of(raw, mesh.held, "mesh")
        size = tensor.dtype.bits // 8
        if not isinstance(tensor, Stored) or tensor.size > _MOST:
            raise FormatError("its mesh cannot be read", where=where, help=MEND)
        with open(tensor.file.path, "rb", opener=regular) as stream:
            data = os.pread(stream.fileno(), tensor.nbytes, tensor.offset)
        known = [int.from_bytes(data[i : i + size], "little", signed=True) for i in range(0, len(data), size)]
    reach = sum((n - 1) * step for n, step in zip(mesh.shape, mesh.steps, strict=True))
    if reach >= len(known):
        raise FormatError(f"its mesh of {mesh.shape} has {len(known)} ranks", where=where, help=MEND)
    return known


def _order(placements: Sequence[Any], cuts: Sequence[int | None], mesh: Sequence[int]) -> tuple[int, ...]:
    """The axes of the mesh in the order in which they cut: `_StridedShard` cuts what those behind it left."""
    order = list(range(len(cuts)))
    for axis, placement in enumerate(placements):
        if placement.function.name != "_StridedShard":
            continue
        behind = [i for i in range(axis + 1, len(cuts)) if cuts[i] == cuts[axis]]
        others = [i for i in range(len(cuts)) if i != axis and placements[i].function.name == "_StridedShard"]
        if _state(placement).get("split_factor") != math.prod(mesh[i] for i in behind) or not behind or others:
            raise Unreadable("a placement _StridedShard that is cut otherwise than its mesh says")
        order.remove(axis)
        order.insert(order.index(behind[-1]) + 1, axis)
    return tuple(order)


def _copy(name: str, held: Sequence[Leaf], raws: Sequence[Raw]) -> Tensor:
    """A tensor beside those that are spread: all ranks have it alike. Raises NotSupported where they do not."""
    each = [tensor_of(raw, one, name) for raw, one in zip(raws, held, strict=True)]  # type: ignore[arg-type]
    if all(same_bytes(each[0], one) for one in each[1:]):
        return each[0]
    tip = "save it again as DTensors, or join it with the program that wrote it"
    what = "a tensor is in every rank's file, another one in each, and nothing says whether these are pieces"
    raise NotSupported(what, where=[f"{raws[0].file.path}: {name}"], help=tip)


def _same(names: Sequence[str]) -> list[str]:
    return [f"the same in all ranks' files, and taken once: {series(listed(list(names), 3))}"] if names else []


def _cut(value: Any, axes: int) -> int | None:
    """The axis of the tensor that a placement cuts."""
    if not (isinstance(value, Call) and isinstance(value.function, Global) and value.function.module == _PLACEMENTS):
        raise Unreadable(f"a placement {told(value)}")
    if value.function.name == "Replicate":
        return None
    axis = _state(value).get("dim") if value.function.name in ("Shard", "_StridedShard") else None
    if type(axis) is not int or not -axes <= axis < axes:
        raise Unreadable(f"a placement {value.function.name}")
    return axis % axes


def _tuple(value: Any) -> Any:
    return (value,) if type(value) is int else value


def _state(value: Any) -> Mapping[str, Any]:
    """The fields of a record."""
    if isinstance(value, Call) and isinstance(value.state, dict):
        return value.state
    raise Unreadable("a record without fields")
