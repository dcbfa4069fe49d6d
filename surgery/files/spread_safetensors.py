"""Distributed checkpoints of torch's in safetensors: each rank's file holds pieces, under the whole tensors' names.

    __metadata__: DCP_SHARDING_INFO    {name: {"saved_offsets": [where the piece begins, axis by axis]}}

A tensor is its pieces, joined where they lie. Nothing says how large the whole is but the pieces themselves: they have
to fill it. Source: torch 2.13, torch/distributed/checkpoint/hf_storage.py, _hf_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import FormatError, LayoutError, listed
from ..lazy.tensor import Stored, Tensor
from .folder import Folder
from .opened import SHARD, Opened
from .safetensors import Header, tensors_of
from .strict import parse_object
from .tiles import Tile, joined

INFO = "DCP_SHARDING_INFO"
_CALLED = "shard-"


def read_spread(folder: Folder, name: str = "") -> Opened | None:
    """The whole tensors of a folder of pieces; None for any other folder, and for a file. Raises FormatError."""
    if name:
        return None
    names = [name for name in folder.names() if name.startswith(_CALLED) and name.endswith(".safetensors")]
    headers = folder.headers(names)
    if not any(INFO in (header.metadata or {}) for _, header in headers.values()):
        return None
    tiles: dict[str, list[Tile]] = {}
    leaves: dict[str, Stored] = {}
    for file_name, (file, header) in headers.items():
        offsets = _offsets(header, folder.at(file_name))
        for name, piece in tensors_of(file, header).items():
            tiles.setdefault(name, []).append(Tile(offsets.get(name, (0,) * len(piece.shape)), piece))
            leaves |= {f"{file_name}: {name}": piece} if piece.size else {}
    tensors = {name: _whole(folder, name, found) for name, found in tiles.items()}
    note = "joined from the pieces of all files: how large each tensor is, they alone say"
    files = tuple(file for file, _ in headers.values())
    what = "a distributed checkpoint of torch's, in safetensors"
    return Opened(what, files, tensors, dict.fromkeys(tensors, SHARD), leaves, frozenset(names), notes=(note,))


def _whole(folder: Folder, name: str, tiles: list[Tile]) -> Tensor:
    rank, dtype = len(tiles[0].at), tiles[0].tensor.dtype
    where = [f"{folder.path}: {name}", *listed([f"{tile.tensor.shape} at {tile.at}" for tile in tiles])]
    if any((len(tile.at), len(tile.tensor.shape), tile.tensor.dtype) != (rank, rank, dtype) for tile in tiles):
        raise FormatError("the pieces of a tensor differ in dtype or axes", where=where, help="they are of two saves")
    shape = tuple(max(tile.at[axis] + tile.tensor.shape[axis] for tile in tiles) for axis in range(rank))
    try:
        return joined(tiles, shape)
    except LayoutError as error:
        tip = "a rank's file is missing, or of another save"
        raise FormatError(f"the pieces make no tensor: {error.what}", where=where, help=tip) from None


def _offsets(header: Header, where: str) -> Mapping[str, tuple[int, ...]]:
    """Where the pieces of a file begin. Raises FormatError."""

    def bad(what: str) -> FormatError:
        return FormatError(f"{INFO} is wrong: {what}", where=[where], help="fetch the file again")

    found: dict[str, tuple[int, ...]] = {}
    for name, said in parse_object((header.metadata or {}).get(INFO, "{}").encode(), bad).items():
        at: Any = said.get("saved_offsets") if isinstance(said, dict) else None
        if not (isinstance(at, list) and all(type(n) is int and n >= 0 for n in at)):
            raise bad(f"{name} begins at {at!r}")
        found[name] = tuple(at)
    return found
