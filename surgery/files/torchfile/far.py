"""A zip that torch wrote and that lies on the Hub, read by ranges: its end, its directory, its pickle, and the headers
of its entries; nothing of its storages.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from ...errors import NotSupported
from ...lazy.tensor import File
from ..folder import Folder
from .archive import Bytes, read_archive
from .parts import chosen
from .reader import ZIP, Raw, TorchFile, made_of
from .records import read_pickle

_HEAD = 1 << 16  # bytes of the begin that are asked for at first: torch writes the pickle there
_TAIL = 1 << 18  # bytes of the end that are asked for at once: the directory of most files


@dataclass(frozen=True, slots=True)
class Far(Bytes):
    """Bytes of a file that is not here; what was asked for ahead is asked for once."""

    folder: Folder | None = None
    name: str = ""
    held: dict[int, bytes] = field(default_factory=dict)  # by where they begin

    def read(self, at: int, size: int) -> bytes:
        """See `Bytes`."""
        end = min(at + size, self.size)
        if not 0 <= at < end:
            return b""
        for begin, raw in ((at, self.held.get(at, b"")), *self.held.items()):
            if begin <= at and end <= begin + len(raw):
                return raw[at - begin : end - begin]
        self.ahead([(at, end - at)])
        return self.held[at]

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """See `Bytes`."""
        ends = {at: min(at + size, self.size) for at, size in spans}
        wanted = [(at, end) for at, end in ends.items() if at + len(self.held.get(at, b"")) < end]
        assert self.folder is not None
        self.held.update((at, raw) for (at, _), raw in zip(wanted, self.folder.ranges(self.name, wanted), strict=True))


def read_far(folder: Folder, name: str, *, key: str = "") -> TorchFile:
    """What `read_torch` makes of a file here. Raises NotSupported for the format of before torch 1.6 as well."""
    file = folder.file(name)
    return made_of(_raw(folder, name, file), lambda root: chosen(root, file.path, key))


def _raw(folder: Folder, name: str, file: File) -> Raw:
    data = Far(-1, 0, file.size, file.path, folder, name)
    data.ahead([(0, _HEAD), (max(0, file.size - _TAIL), _TAIL)])
    if data.read(0, len(ZIP)) != ZIP:
        tip = "fetch it first, with hf download, and pass the folder"
        what = "only zips that torch wrote are read from the Hub, and this is none"
        raise NotSupported(what, where=[file.path], help=tip)
    archive = read_archive(data)
    return Raw(file, read_pickle(archive.pickle, f"{file.path}: data.pkl"), archive.storages)
