"""torch's distributed checkpoints (DCP), as FSDP, torchtitan, NeMo and Megatron write them: `.metadata`, `*.distcp`.

    .metadata         a pickle: for each tensor its shape and its chunks; for each chunk the file, offset and length
    __R_N.distcp      chunks one after another, each a whole file as torch.save writes it

A tensor is its chunks, joined along their offsets: movement alone. The metadata is read as data, like every pickle.
Source: torch 2.13, torch/distributed/checkpoint/metadata.py, filesystem.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from ...errors import FormatError, LayoutError, NotSupported
from ...lazy.tensor import File, Tensor
from ..folder import Folder
from ..opened import SHARD, Opened, leaves_of
from ..opening import regular
from ..strict import MEND
from ..tiles import Tile, joined
from .archive import Bytes, read_archive
from .megatron import OWN, is_megatron
from .parts import chosen
from .reader import ENDINGS, Raw, check_here, tensor_of
from .records import Call, Global, Leaf, read_pickle, text, uncollected
from .storages import Described, Unreadable, described, sizes_of

METADATA = ".metadata"
_MODULE = "torch.distributed.checkpoint."


@dataclass(frozen=True, slots=True)
class Spread(Leaf):
    """A tensor of the checkpoint: its name there, its shape, and where its chunks begin and how large they are."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Lies:
    """Where a chunk lies."""

    path: str
    offset: int
    length: int


def is_distributed(folder: Folder) -> bool:
    """Whether the folder holds such a checkpoint."""
    names = folder.names()
    return folder.has(METADATA) and (
        any(name.endswith(".distcp") for name in names) or not any(name.endswith(ENDINGS) for name in names)
    )


@uncollected()
def read_distributed(folder: Folder, key: str) -> Opened:
    """The model in it, or what lies under `key`. Raises FormatError, NotACheckpoint, NotSupported."""
    where = folder.at(METADATA)
    file, raw = check_here(folder, METADATA, "distributed checkpoints"), folder.read(METADATA)
    said = _state(read_pickle(raw, where), "metadata.Metadata", where)
    found = chosen(_nested(said, where), where, key)
    places = dict(_places(said, where))
    tensors: dict[str, Tensor] = {}
    with ExitStack() as stack:
        chunks = _Chunks(folder, stack)
        for name, one in found.tensors.items():
            tensors[name] = _tensor(cast(Spread, one), places, chunks)
        files = tuple(chunks.files.values())
    megatron = is_megatron(folder)
    own = {METADATA, *(OWN if megatron else ()), *(name for name in folder.names() if name.endswith(".distcp"))}
    leaves, partly = leaves_of(tensors)
    files = (replace(file, digest=hashlib.sha256(raw).hexdigest()), *files)
    what = f"a distributed checkpoint of {'Megatron' if megatron else 'torch'}'s"
    shards = dict.fromkeys(tensors, SHARD)
    return Opened(what, files, tensors, shards, leaves, frozenset(own), partly, tuple(found.told()))


class _Chunks:
    """Chunks of the folder's files, which are opened once each."""

    def __init__(self, folder: Folder, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.files: dict[str, File] = {}
        self._streams: dict[str, IO[bytes]] = {}
        self._said: dict[bytes, Described | None] = {}

    def tensor(self, lies: Lies, name: str) -> Tensor:
        """The tensor that a chunk is. Raises FormatError."""
        if lies.path not in self._streams:
            if lies.path not in self.folder.names():
                said = f"{self.folder.at(METADATA)}: {name}"
                raise FormatError(f"the file {lies.path!r} is not there", where=[said], help="fetch the missing file")
            self.files[lies.path] = self.folder.file(lies.path)
            stream = open(self.folder.at(lies.path), "rb", opener=regular)  # noqa: SIM115
            self._streams[lies.path] = self._stack.enter_context(stream)
        file = self.files[lies.path]
        where = f"{file.path}: {name}"
        if lies.offset + lies.length > file.size:
            raise FormatError("a chunk reaches beyond the file's end", where=[where], help="fetch the file again")
        archive = read_archive(Bytes(self._streams[lies.path].fileno(), lies.offset, lies.length, where))
        try:
            if archive.pickle not in self._said:  # chunks of one shape say the same
                self._said[archive.pickle] = described(read_pickle(archive.pickle, where))
            one = self._said[archive.pickle]
        except Unreadable as error:
            raise FormatError(f"a chunk cannot be read: {error}", where=[where], help=MEND) from None
        if one is None:
            raise FormatError("no tensor is in a chunk", where=[where], help=MEND)
        return tensor_of(Raw(file, None, archive.storages), one, name)


def _tensor(one: Spread, places: Mapping[tuple[str, tuple[int, ...]], Lies], chunks: _Chunks) -> Tensor:
    where = [f"{chunks.folder.at(METADATA)}: {one.name}"]
    tiles = []
    for at, sizes in one.chunks:
        if (one.name, at) not in places:
            raise FormatError(f"it is not said where the chunk at {at} lies", where=where, help=MEND)
        tile = chunks.tensor(places[one.name, at], one.name)
        if tile.shape != sizes:
            raise FormatError(f"the chunk at {at} is {tile.shape}, and not {sizes}", where=where, help=MEND)
        tiles.append(Tile(at, tile))
    try:
        return joined(tiles, one.shape)
    except LayoutError as error:
        tip = "a rank's file is missing, or of another save"
        raise FormatError(f"the chunks make no tensor: {error.what}", where=where, help=tip) from None


def _nested(said: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tensors as they lay in the state that was saved: by the paths that the planner kept, or else by name."""
    held, paths = said.get("state_dict_metadata"), said.get("planner_data")
    if not isinstance(held, dict):
        raise FormatError("no table of tensors is in the metadata", where=[where], help=MEND)
    root: dict[str, Any] = {}
    for name, value in held.items():
        path = paths.get(name) if isinstance(paths, dict) else None
        steps = [text(step) for step in path] if isinstance(path, tuple) and path else [text(name)]
        place = root
        for step in steps[:-1]:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise FormatError("two tensors have one path", where=[f"{where}: {name}"], help=MEND)
        is_tensor = isinstance(value, Call) and _is(value, "metadata.TensorStorageMetadata")
        place[steps[-1]] = _spread(text(name), value, where) if is_tensor else None  # counters, lists
    return root


def _spread(name: str, value: Call, where: str) -> Spread:
    state = value.state if isinstance(value.state, dict) else {}
    chunks = state.get("chunks")
    try:
        if not isinstance(chunks, list):
            raise Unreadable("its chunks are not listed")
        parts = [_state(chunk, "metadata.ChunkStorageMetadata", where) for chunk in chunks]
        pairs = tuple((sizes_of(part.get("offsets")), sizes_of(part.get("sizes"))) for part in parts)
        return Spread(name, sizes_of(state.get("size")), pairs)
    except Unreadable as error:
        raise FormatError(f"a tensor is described wrongly: {error}", where=[f"{where}: {name}"], help=MEND) from None


def _places(said: Mapping[str, Any], where: str) -> Iterator[tuple[tuple[str, tuple[int, ...]], Lies]]:
    """Where each chunk of a tensor lies, by name and offset."""
    held = said.get("storage_data")
    if not isinstance(held, dict):
        raise FormatError("the metadata does not say where chunks lie", where=[where], help=MEND)
    for index, info in held.items():
        at, lies = _state(index, "metadata.MetadataIndex", where), _state(info, "filesystem._StorageInfo", where)
        path, offset, length = (lies.get(key) for key in ("relative_path", "offset", "length"))
        name = text(at.get("fqn"))
        if lies.get("transform_descriptors"):
            tip = "save it without transforms"
            raise NotSupported("chunks are packed or encrypted", where=[f"{where}: {name}"], help=tip)
        if not (isinstance(path, str) and type(offset) is int and type(length) is int and min(offset, length) >= 0):
            raise FormatError("it is not said where a chunk lies", where=[f"{where}: {name}"], help=MEND)
        begin = at.get("offset")
        try:
            yield (name, sizes_of(begin) if begin is not None else ()), Lies(path, offset, length)
        except Unreadable as error:
            raise FormatError(f"a chunk is described wrongly: {error}", where=[f"{where}: {name}"], help=MEND) from None


def _state(value: Any, kind: str, where: str) -> Mapping[str, Any]:
    """The fields of a record of torch's. Raises FormatError for another one."""
    if isinstance(value, Call) and _is(value, kind) and isinstance(value.state, dict):
        return value.state
    tip = "the file is damaged, or written by a version that lays it out otherwise"
    raise FormatError(f"the metadata holds no {kind} where one belongs", where=[where], help=tip)


def _is(value: Call, kind: str) -> bool:
    return isinstance(value.function, Global) and str(value.function) == f"{_MODULE}{kind}"
