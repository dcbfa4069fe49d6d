"""A right index beside shards that stay as they are: where an index is stale, and the shards hold just its tensors."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from ..errors import DestinationError, NotACheckpoint
from ..evaluation.read import sha256
from ..files.folder import LocalFolder, PathLike, locate
from ..files.index import encode_index, parse_index
from ..files.manifest import MANIFEST, encode_manifest, read_manifest
from ..files.safetensors import tensors_of
from ..files.stale_index import holding, left_out
from ..files.symlinks import snapshot_of
from ..lazy.tensor import Tensor
from ..names import natural
from ..opened import takes_opened
from .stage import as_ours, beside
from .writing_inside import durable

_UNFINISHED = ".surgery-index-"


@dataclass(frozen=True, slots=True)
class Reindexed:
    """The index at `path`, which names `tensors` tensors in `shards`; `changed` says whether it was another one
    before.
    """

    path: str
    tensors: int
    shards: tuple[str, ...]
    changed: bool


@takes_opened
def reindex(path: PathLike) -> Reindexed:
    """Afterwards the index in the folder `path`, or the index file there, names the shards that hold its tensors.

    The shards are only read, by their headers; the index is replaced by one rename, and its entry in the manifest
    renewed. What else it said stays, but for `total_size`.
    Raises NotACheckpoint where there is no index, or where the files do not hold each of its tensors once.
    """
    folder, name = locate(path)
    if not isinstance(folder, LocalFolder) or snapshot_of(folder.path):
        tip = "write it to a folder of your own: surgery reshard MODEL -o OUT, with the index left out"
        raise DestinationError("an index is written beside shards of your own", where=[folder.path], help=tip)
    named = [name] if name else [n for n in folder.names() if n.endswith(".safetensors.index.json")]
    if len(named) != 1 or not named[0].endswith(".json"):
        what = f"the folder holds {len(named)} indices" if len(named) > 1 else "no index is here"
        raise NotACheckpoint(
            what, where=[folder.at(name)], help="pass a folder with one index, or the index that you mean"
        )
    where = folder.at(named[0])
    old = parse_index(folder.read(named[0]), where)
    shards = holding(folder, old)
    if not shards:
        tip = "fetch the missing files; of what is there twice, move what is not meant to another folder"
        raise NotACheckpoint("the files do not hold each tensor of the index once", where=[where], help=tip)
    shards = sorted([*shards, *left_out(folder, shards)], key=natural)
    tensors: dict[str, Tensor] = {}
    weight_map: dict[str, str] = {}
    for shard, (file, header) in folder.headers(shards).items():
        tensors |= tensors_of(file, header)
        weight_map |= dict.fromkeys(header.entries, shard)
    new = encode_index({**old.metadata, "total_size": sum(t.nbytes for t in tensors.values())}, weight_map)
    if changed := new != old.raw:
        _replaced(where, new)
    _told(folder, named[0], new)
    return Reindexed(where, len(weight_map), tuple(shards), changed)


def _told(folder: LocalFolder, name: str, index: bytes) -> None:
    """The folder's manifest, where it has one that lists the index, says what the index holds now."""
    manifest = read_manifest(folder)
    if manifest is None or name not in manifest.files:
        return
    digests = {**manifest.digests, name: sha256(index)} if manifest.digests else {}
    renewed = replace(manifest, files={**manifest.files, name: len(index)}, digests=digests)
    if renewed != manifest:
        _replaced(folder.at(MANIFEST), encode_manifest(renewed))


def _replaced(path: str, content: bytes) -> None:
    """The file at `path`, durable, in one step; what a link there led to stays as it is, and nothing is left of runs
    that were broken off.
    """
    folder = os.path.dirname(path)
    try:
        with _alone(folder):
            for name in os.listdir(folder):
                if name.startswith(_UNFINISHED):
                    os.unlink(os.path.join(folder, name))
            with beside(path, content, _UNFINISHED, os.stat(path).st_mode & 0o777) as new:
                os.rename(new, path)
    except OSError as error:
        raise as_ours(error, path) from error


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    """No other run writes an index here meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        durable(fd)
    finally:
        os.close(fd)
