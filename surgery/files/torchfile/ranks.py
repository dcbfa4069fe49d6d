"""One file a rank, of DTensors: `model_world_size_N_rank_R.pt`, as verl, SkyRL and others write them.

A rank's file holds its own piece of each tensor, and how the mesh of ranks was laid over it: an axis of the mesh cuts
an axis of the tensor (`Shard`), or all its ranks hold the same (`Replicate`). A tensor is its pieces, joined.
Source: torch 2.13, torch/distributed/tensor/_api.py `__tensor_flatten__`, device_mesh.py, placement_types.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from ...errors import FormatError, LayoutError, NotSupported, listed
from ...lazy.tensor import Tensor, concat
from ..folder import Folder
from ..opened import SHARD, Opened, leaves_of
from .parts import chosen
from .reader import Raw, raw_of, tensor_of
from .records import Call, Global, Leaf
from .storages import Described, Unreadable, described, sizes_of

CALLED = re.compile(r"(?P<stem>model_|model_states_|)world_size_(?P<world>\d+)_rank_(?P<rank>\d+)\.pt")
_PLACEMENTS = "torch.distributed.tensor.placement_types"


@dataclass(frozen=True, slots=True)
class Piece(Leaf):
    """A rank's piece of a tensor: `cuts` says for each axis of the mesh which axis of the tensor it cuts, or None."""

    local: Described
    shape: tuple[int, ...]
    mesh: tuple[int, ...]
    cuts: tuple[int | None, ...]


def ranks_in(folder: Folder) -> dict[int, str]:
    """The files of the ranks; none where there are none. Raises FormatError where some are missing."""
    found = [match for name in folder.names() if (match := CALLED.fullmatch(name))]
    files = {int(match["rank"]): match[0] for match in found}
    worlds = {int(match["world"]) for match in found}
    if found and (len(worlds) > 1 or len(found) != len(files) or set(files) != set(range(next(iter(worlds))))):
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
            raise FormatError("the ranks do not hold the same tensors", where=[raw.file.path, *rows])
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors[name] = _whole(name, [one.tensors[name] for one in found], raws)
    leaves, partly = leaves_of(tensors)
    own = frozenset(name for name in folder.names() if "world_size_" in name and name.endswith(".pt"))
    whole = tuple(raw.file for raw in raws)
    what = f"the files of {len(files)} ranks"
    return Opened(what, whole, tensors, dict.fromkeys(tensors, SHARD), leaves, own, partly, tuple(found[0].told()))


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
    alike = {(one.shape, one.mesh, one.cuts) for one in pieces}
    if len(pieces) != len(held) or len(alike) > 1 or math.prod(first.mesh) != len(held):
        raise FormatError("the ranks do not say the same of a tensor", where=where, help="keep one save in the folder")
    at: dict[tuple[int, ...], int] = {place: i for i, place in enumerate(product(*map(range, first.mesh)))}

    def part(cut: int, fixed: tuple[int, ...]) -> Tensor:
        """The tensor of those ranks whose first places on the mesh are `fixed`."""
        if cut == len(first.mesh):
            rank = at[fixed]
            return tensor_of(raws[rank], pieces[rank].local, name)
        if first.cuts[cut] is None:
            return part(cut + 1, (*fixed, 0))
        parts = [part(cut + 1, (*fixed, place)) for place in range(first.mesh[cut])]
        axis = first.cuts[cut] or 0
        return concat([one for one in parts if one.size] or parts[:1], axis)

    try:
        made = part(0, ())
    except LayoutError as error:
        raise FormatError(f"the ranks' pieces make no tensor: {error.what}", where=where) from None
    if made.shape != first.shape:
        raise FormatError(f"the ranks' pieces make {made.shape}, and not {first.shape}", where=where)
    return made


def _marked(value: Any, depth: int = 0) -> Any:
    """The records with each DTensor as a piece."""
    if isinstance(value, dict):
        return {key: _marked(child, depth + 1) for key, child in value.items()} if depth < 64 else value
    if isinstance(value, Call):
        if (piece := _piece(value)) is not None:
            return piece
        if value.entries:
            return {key: _marked(child, depth + 1) for key, child in value.entries.items()} if depth < 64 else value
    return value


def _piece(value: Call) -> Piece | None:
    """The piece that a record describes; None for what is no DTensor. Raises NotSupported."""
    args = value.args
    of_type = isinstance(value.function, Global) and value.function.name == "_rebuild_from_type_v2"
    if not (of_type and isinstance(args, tuple) and len(args) == 4 and str(args[1]).endswith(".DTensor")):
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
        return Piece(local, shape, mesh, tuple(_cut(one, len(shape)) for one in placements))
    except Unreadable as error:
        tip = "join it with the program that wrote it, and pass the result"
        raise NotSupported(f"a piece of a tensor cannot be placed: {error}", help=tip) from None


def _mesh(state: Mapping[str, Any], axes: int) -> tuple[int, ...]:
    """The shape of the mesh, whose ranks lie in their order."""
    layout = _state(state["_layout"]) if "_layout" in state else None
    if layout is None:
        held = described(state.get("mesh"))
        if not isinstance(held, Described):
            raise Unreadable("a mesh whose shape is not said")
        return held.shape
    flat = [_state(one) for one in layout.get("axes", ())] or [layout]
    shape = tuple(math.prod(sizes_of(_tuple(one.get("shape")))) for one in flat)
    steps = [sizes_of(_tuple(one.get("stride"))) for one in flat]
    wanted = [(math.prod(shape[i + 1 :]),) if size > 1 else steps[i] for i, size in enumerate(shape)]
    if len(shape) != axes or steps != wanted:
        raise Unreadable(f"a mesh of {shape} whose ranks are not in order")
    return shape


def _cut(value: Any, axes: int) -> int | None:
    """The axis of the tensor that a placement cuts."""
    if not (isinstance(value, Call) and isinstance(value.function, Global) and value.function.module == _PLACEMENTS):
        raise Unreadable(f"a placement {value}")
    if value.function.name == "Replicate":
        return None
    axis = _state(value).get("dim") if value.function.name == "Shard" else None
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
