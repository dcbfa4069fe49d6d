"""The zip that torch writes: where the pickle lies, and each storage. Nothing is unpacked.

    ROOT/data.pkl        the pickle; ROOT is what the file was called when it was saved
    ROOT/byteorder       little, or absent
    ROOT/data/KEY        a storage's bytes, as they are

The zip's own directory is believed, not the writer's habits, and held against the file: entries are stored and not
packed, lie within the file, and share nothing. Source: torch 2.13, torch/serialization.py, caffe2/serialize/.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from ...errors import FormatError
from .records import MOST_BYTES

if TYPE_CHECKING:
    import zipfile

_LOCAL = 30  # bytes of an entry's own header before its name
PICKLE = "data.pkl"
_ONLY = "it was packed by another tool; save it again with torch"


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes [start, start + size) of the file."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The pickle, and where each storage lies, by key; `digest` is of both."""

    pickle: bytes
    storages: Mapping[str, Place]
    digest: str


def read_archive(stream: IO[bytes], size: int, where: str, *, begin: int = 0) -> Archive:
    """The archive in `stream`, of `size` bytes; `begin` is where it lies in the file called `where`.

    Raises FormatError.
    """

    def bad(what: str, help: str = "the file is damaged; fetch it again") -> FormatError:
        return FormatError(f"the zip is wrong: {what}", where=[where], help=help)

    import zipfile

    try:
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, UnicodeError, OverflowError) as error:
        raise bad(str(error)[:200]) from None
    named: dict[str, zipfile.ZipInfo] = {}
    for entry in entries:
        if entry.filename in named:
            raise bad(f"two entries are called {entry.filename}")
        named[entry.filename] = entry
    pickles = [name for name in named if name == PICKLE or name.endswith(f"/{PICKLE}")]
    if len(pickles) != 1:
        raise bad(f"{len(pickles)} entries are called {PICKLE}, and one is needed", "it is no file that torch saved")
    root = pickles[0].removesuffix(PICKLE)
    order = named.get(f"{root}byteorder")
    front = f"{root}data/"
    wanted = {name: entry for name, entry in named.items() if name.startswith(front) or name == pickles[0]}
    places = {name: _place(stream, entry, size, bad) for name, entry in wanted.items()}
    _check_apart(places, bad)
    if order is not None and _content(stream, _place(stream, order, size, bad), 64) not in (b"little", b"little\n"):
        raise bad("its numbers are stored in the other byte order", "save it again on a little-endian machine")
    if places[pickles[0]].size > MOST_BYTES:
        raise bad(f"{pickles[0]} has {places[pickles[0]].size} bytes, and at most {MOST_BYTES} are read")
    raw = _content(stream, places.pop(pickles[0]), MOST_BYTES)
    storages = {name.removeprefix(front): Place(begin + p.start, p.size) for name, p in places.items()}
    return Archive(raw, storages, _digest(raw, storages))


def _place(stream: IO[bytes], entry: zipfile.ZipInfo, size: int, bad: object) -> Place:
    """Where an entry's bytes lie: its own header says how long its name and what follows that are."""
    import zipfile

    assert callable(bad)
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise bad(f"{entry.filename} is packed", _ONLY)
    if entry.flag_bits & 1:
        raise bad(f"{entry.filename} is encrypted", _ONLY)
    stream.seek(entry.header_offset)
    local = stream.read(_LOCAL)
    if len(local) < _LOCAL or local[:4] != b"PK\x03\x04":
        raise bad(f"{entry.filename} is not where the directory says")
    name, extra = int.from_bytes(local[26:28], "little"), int.from_bytes(local[28:30], "little")
    if stream.read(name) != entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437", "replace"):
        raise bad(f"{entry.filename} is called otherwise where it lies")
    start = entry.header_offset + _LOCAL + name + extra
    if start + entry.file_size > size:
        raise bad(f"{entry.filename} reaches beyond the file's end")
    return Place(start, entry.file_size)


def _check_apart(places: Mapping[str, Place], bad: object) -> None:
    assert callable(bad)
    end, before = 0, ""
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].size)):
        if place.size and place.start < end:
            raise bad(f"{before} and {name} share bytes")
        end, before = max(end, place.start + place.size), name


def _content(stream: IO[bytes], place: Place, most: int) -> bytes:
    stream.seek(place.start)
    return stream.read(min(place.size, most))


def _digest(raw: bytes, storages: Mapping[str, Place]) -> str:
    digest = hashlib.sha256(raw)
    for key, place in storages.items():
        digest.update(f"\0{key} {place.start} {place.size}".encode())
    return digest.hexdigest()
