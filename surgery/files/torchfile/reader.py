"""A file that torch saved -> its tensors by name, without reading one and without running anything."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...errors import FormatError, LayoutError, NotSupported, listed, shown
from ...lazy.tensor import File, Stored, Tensor, stored
from ..folder import Folder
from ..opening import regular, unreadable_file
from ..strict import POINTER, pointed
from .archive import Bytes, Place, read_archive
from .legacy import BEGIN, is_legacy, read_legacy
from .parts import Chosen, chosen
from .records import Call, Persistent, read_pickle, uncollected
from .storages import Described, Unreadable, storage
from .strided import strided

ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
ZIP = b"PK\x03\x04"


@dataclass(frozen=True)
class TorchFile:
    """The model's tensors in a file; `notes` on what was left out and how it was found.

    `leaves` are the stored bytes that each is made of; of those in `partly`, views with gaps, not all are used.
    """

    file: File
    tensors: Mapping[str, Tensor]
    leaves: Mapping[str, Stored]
    partly: frozenset[str]
    notes: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...]  # names of tensors that are the same bytes


def check_here(folder: Folder, name: str, what: str = "files that torch saved") -> File:
    """The file of that name, which is on this machine. Raises NotSupported for one on the Hub."""
    file = folder.file(name)
    if file.remote:
        tip = "fetch it first, with hf download, and pass the folder"
        raise NotSupported(f"{what} are not read from the Hub", where=[folder.at(name)], help=tip)
    return file


def is_torch(path: str) -> bool:
    """Whether the file begins as torch's do."""
    try:
        with open(path, "rb", opener=regular) as stream:
            begin = stream.read(BEGIN)
    except OSError:
        return False
    return begin.startswith(ZIP) or is_legacy(begin)


@dataclass(frozen=True)
class Raw:
    """A file's object as records, and where its storages lie."""

    file: File
    root: Any
    storages: Mapping[str, Place]


@uncollected()
def read_torch(path: str, *, key: str = "") -> TorchFile:
    """The tensors of the model in the file at `path`, or of what lies under `key` in it.

    Raises FormatError for what torch did not write, or not so; NotACheckpoint where no model is in it, or several.
    """
    return made_of(raw_of(path), lambda root: chosen(root, path, key))


def raw_of(path: str) -> Raw:
    """What lies in the file at `path`. Raises FormatError."""
    try:
        with open(path, "rb", opener=regular) as stream:
            status = os.fstat(stream.fileno())
            begin = stream.read(BEGIN)
            stream.seek(0)
            if begin.startswith(ZIP):
                archive = read_archive(Bytes(stream.fileno(), 0, status.st_size, path))
                root = read_pickle(archive.pickle, f"{path}: data.pkl")
            elif is_legacy(begin):
                root, archive = read_legacy(stream, status.st_size, path, _widths)
            elif begin.startswith(POINTER):
                raise pointed(lambda what: FormatError(what, where=[path]))
            else:
                tip = "torch writes a zip since 1.6; a tar of before 0.1.10 has to be loaded and saved again"
                raise FormatError("the file is none that torch saved", where=[path], help=tip)
    except OSError as error:
        raise unreadable_file(error, path) from error
    file = File(os.path.abspath(path), status.st_size, status.st_mtime_ns, archive.digest)
    return Raw(file, root, archive.storages)


def tensor_of(raw: Raw, one: Described, name: str) -> Tensor:
    """The tensor of the file that is described. Raises FormatError."""
    where = [f"{raw.file.path}: {name}"]
    place = raw.storages.get(one.key)
    if place is None:
        tip = "the file is damaged; fetch it again"
        raise FormatError(f"the storage {shown(one.key)} is not in the file", where=where, help=tip)
    if place.size != one.count * one.width:
        said = f"the storage {one.key!r} has {place.size} bytes, and the pickle says {one.count * one.width}"
        raise FormatError(said, where=where, help="the file is damaged; fetch it again")
    try:
        return strided(raw.file, place.start, place.size, one.dtype, one.offset, one.shape, one.strides)
    except LayoutError as error:
        tip = error.help or "the file is damaged; fetch it again"
        raise FormatError(f"the tensor is none that can be read: {error.what}", where=where, help=tip) from error


def made_of(raw: Raw, choose: Callable[[Any], Chosen]) -> TorchFile:
    """The tensors of the file that are chosen of its object. Raises what `read_torch` does."""
    found = choose(raw.root)
    tensors, leaves, partly = dict[str, Tensor](), dict[str, Stored](), set[str]()
    described = cast(Mapping[str, Described], found.tensors)
    for name, one in described.items():
        tensor = tensor_of(raw, one, name)
        tensors[name], leaves[name] = tensor, next(stored(tensor))
        if leaves[name].size != tensor.size:
            partly.add(name)
    if found.unreadable:
        rows = [f"{name} ({why})" for name, why in found.unreadable.items()]
        tip = "save it as ordinary tensors, with torch"
        raise NotSupported(
            "tensors of the file cannot be told as bytes", where=[raw.file.path, *listed(rows)], help=tip
        )
    notes = tuple(found.told(os.path.basename(raw.file.path)))
    return TorchFile(raw.file, tensors, leaves, frozenset(partly), notes, _shared(described))


def _shared(found: Mapping[str, Described]) -> tuple[tuple[str, ...], ...]:
    """Names of tensors that are one in the file."""
    same: dict[Described, list[str]] = {}
    for name, one in found.items():
        same.setdefault(one, []).append(name)
    return tuple(tuple(names) for names in same.values() if len(names) > 1 and 0 not in found[names[0]].shape)


def _widths(root: Any) -> dict[str, tuple[int, int]]:
    """Bytes an element and number of elements of each storage that is in the object."""
    found: dict[str, tuple[int, int]] = {}
    todo, seen = [root], set[int]()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        match value:
            case Persistent():
                try:
                    key, _, width, count = storage(value)
                except Unreadable:
                    continue
                found[key] = (width, count)
            case Call():
                todo += [value.args, value.state, *value.entries.values(), *value.items]
            case dict():
                todo += value.values()
            case list() | tuple():
                todo += value
    return found
