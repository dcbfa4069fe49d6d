"""The zip that torch writes: where the pickle lies, and each storage. Nothing is unpacked.

    ROOT/data.pkl        the pickle; ROOT is what the file was called when it was saved
    ROOT/byteorder       little, or absent
    ROOT/data/KEY        a storage's bytes, as they are

The zip's own directory is believed, not the writer's habits, and held against the file: the directory lies where the
zip ends, entries are stored and not packed, lie before it, have one name each, here and where they lie, and share
nothing. What is unpickled is held against its checksum; storages are not, since nothing of them is read here. Source:
torch 2.13, torch/serialization.py, caffe2/serialize/; PKWARE's APPNOTE 6.3.10.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from struct import Struct
from typing import NamedTuple

from ...errors import FormatError
from .records import MOST_BYTES

MOST_ENTRIES = 500_000
PICKLE = "data.pkl"
_END, _END64, _LOCATOR = Struct("<4s4H2LH"), Struct("<4sQ2H2L4Q"), Struct("<4sLQL")
_ENTRY, _LOCAL = Struct("<4s6H3L5H2L"), Struct("<4s5H3L2H")
_COMMENT = 0xFFFF  # bytes at most, behind the end's record
_U8 = Struct("<Q")
_FULL = 0xFFFFFFFF  # what stands in 4 bytes where 8 elsewhere say it
_ENCRYPTED, _UTF8 = 1, 0x800
_ONLY = "it was packed by another tool; save it again with torch"


class Place(NamedTuple):
    """Bytes [start, start + size) of the file."""

    start: int
    size: int


@dataclass(frozen=True, slots=True)
class Archive:
    """The pickle, and where each storage lies, by key."""

    pickle: bytes
    storages: Mapping[str, Place]

    @property
    def digest(self) -> str:
        """Of both."""
        digest = hashlib.sha256(self.pickle)
        for key, (start, size) in self.storages.items():
            digest.update(b"\0%b %d %d" % (key.encode("utf-8", "surrogatepass"), start, size))
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Bytes:
    """`size` bytes of an open file, from byte `begin` of it on; `where` says in words what they are."""

    fd: int
    begin: int
    size: int
    where: str

    def read(self, at: int, size: int) -> bytes:
        """Those from `at` on, as far as there are any."""
        return os.pread(self.fd, max(0, min(size, self.size - at)), self.begin + at) if 0 <= at < self.size else b""

    def ahead(self, spans: Iterable[tuple[int, int]]) -> None:
        """Say which (place, size) will be read next, where that is of use."""

    def bad(self, what: str, help: str = "the file is damaged; fetch it again") -> FormatError:
        """What is wrong with them."""
        return FormatError(f"the zip is wrong: {what}", where=[self.where], help=help)


class _Entry(NamedTuple):
    name: str
    raw: bytes
    flags: int
    method: int
    checksum: int
    packed: int
    size: int
    header: int


def read_archive(data: Bytes) -> Archive:
    """The archive that those bytes are. Raises FormatError."""
    at, size, count = _directory(data)
    named: dict[str, _Entry] = {}
    for entry in _entries(data.read(at, size), count, data.bad):
        if entry.name in named:
            raise data.bad(f"two entries are called {entry.name}")
        named[entry.name] = entry
    pickles = [name for name in named if name == PICKLE or name.endswith(f"/{PICKLE}")]
    if len(pickles) != 1:
        raise data.bad(
            f"{len(pickles)} entries are called {PICKLE}, and one is needed", "it is no file that torch saved"
        )
    root = pickles[0].removesuffix(PICKLE)
    order, front = f"{root}byteorder", f"{root}data/"
    wanted = [entry for name, entry in named.items() if name.startswith(front) or name in (pickles[0], order)]
    data.ahead((entry.header, _LOCAL.size + len(entry.raw)) for entry in wanted)
    places = {entry.name: _place(data, entry, at) for entry in wanted}
    _check_apart(wanted, places, data.bad)
    if order in places and _content(data, named[order], places.pop(order), 64) not in (b"little", b"little\n"):
        raise data.bad("its numbers are stored in the other byte order", "save it again on a little-endian machine")
    raw = _content(data, named[pickles[0]], places.pop(pickles[0]), MOST_BYTES)
    cut = len(front)
    return Archive(raw, {name[cut:]: Place(data.begin + start, size) for name, (start, size) in places.items()})


def _directory(data: Bytes) -> tuple[int, int, int]:
    """Where the directory begins, its bytes, and how many entries it has."""
    end, at = data.read(data.size - _END.size, _END.size), data.size - _END.size
    if end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":  # a comment lies behind it
        tail = data.read(max(0, data.size - _END.size - _COMMENT), _END.size + _COMMENT)
        found = tail.rfind(b"PK\x05\x06", 0, len(tail) - _END.size + 4)
        at = data.size - len(tail) + found
        end = tail[found : found + _END.size] if found >= 0 else b""
    if len(end) < _END.size:
        raise data.bad("it has no directory: it is cut off, or no zip")
    _, disk, first, here, count, size, start, comment = _END.unpack(end)
    if at + _END.size + comment != data.size or (disk, first) != (0, 0) or here != count:
        raise data.bad("what ends it is not its end, or it is one of several")
    locator = data.read(at - _LOCATOR.size, _LOCATOR.size)
    if locator[:4] == b"PK\x06\x07":
        _, disk, begin, disks = _LOCATOR.unpack(locator)
        record = data.read(begin, _END64.size)
        if len(record) < _END64.size or record[:4] != b"PK\x06\x06" or (disk, disks) != (0, 1):
            raise data.bad("its directory is not where it says")
        _, length, _, _, disk, first, here, many, bytes_, offset = _END64.unpack(record)
        if begin + 12 + length != at - _LOCATOR.size or (disk, first) != (0, 0) or here != many:
            raise data.bad("its directory is not where it says")
        short = ((count, many, 0xFFFF), (size, bytes_, _FULL), (start, offset, _FULL))
        if any(small not in (large, full) for small, large, full in short):
            raise data.bad("it says two things of its directory")
        at, count, size, start = begin, many, bytes_, offset
    if start + size != at:
        raise data.bad("its directory is not where it says")
    if count > MOST_ENTRIES or size > MOST_BYTES:
        raise data.bad(f"{count} entries in {size} bytes, and at most {MOST_ENTRIES} in {MOST_BYTES} are read")
    return start, size, count


def _entries(raw: bytes, count: int, bad: Callable[..., FormatError]) -> Iterator[_Entry]:
    """What the directory says."""
    at, unpack, fixed = 0, _ENTRY.unpack_from, _ENTRY.size
    for _ in range(count):
        if at + fixed > len(raw):
            raise bad("its directory is cut off")
        mark, _, _, flags, method, _, _, checksum, packed, size, long, more, said, disk, _, _, header = unpack(raw, at)
        name = raw[at + fixed : at + fixed + long]
        extra = raw[at + fixed + long : at + fixed + long + more]
        at += fixed + long + more + said
        if mark != b"PK\x01\x02" or at > len(raw) or disk:
            raise bad("its directory is damaged")
        if _FULL in (packed, size, header):
            size, packed, header = _wide(extra, (size, packed, header), bad)
        yield _Entry(_named(name, flags, bad), name, flags, method, checksum, packed, size, header)
    if at != len(raw):
        raise bad("its directory holds more than its entries")


def _named(raw: bytes, flags: int, bad: Callable[..., FormatError]) -> str:
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeError:
        raise bad(f"an entry has a name that is no text: {raw[:60]!r}") from None
    if not name.isprintable():
        raise bad(f"an entry has characters in its name that no name has: {name[:60]!r}")
    return name


def _wide(extra: bytes, said: tuple[int, ...], bad: Callable[..., FormatError]) -> list[int]:
    """Those numbers of an entry, with what had no room in 4 bytes each."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        field, at = extra[at + 4 : at + 4 + size], at + 4 + size
        if kind == 1:
            needed = [i for i, one in enumerate(said) if one == _FULL]
            if len(field) < 8 * len(needed):
                break
            found = dict(zip(needed, (one for (one,) in _U8.iter_unpack(field[: 8 * len(needed)])), strict=True))
            return [found.get(i, one) for i, one in enumerate(said)]
    raise bad("an entry does not say how large it is")


def _place(data: Bytes, entry: _Entry, end: int) -> Place:
    """Where an entry's bytes lie: its own header says how long its name and what follows that are."""
    name, size, header = entry.name, entry.size, entry.header
    if entry.method or entry.packed != size:
        raise data.bad(f"{name} is packed", _ONLY)
    if entry.flags & _ENCRYPTED:
        raise data.bad(f"{name} is encrypted", _ONLY)
    local = data.read(header, _LOCAL.size + len(entry.raw))
    if len(local) < _LOCAL.size or local[:4] != b"PK\x03\x04":
        raise data.bad(f"{name} is not where the directory says")
    _, _, _, method, _, _, _, _, _, long, more = _LOCAL.unpack_from(local)
    if local[_LOCAL.size :] != entry.raw or long != len(entry.raw):
        raise data.bad(f"{name} is called otherwise where it lies")
    if method:
        raise data.bad(f"{name} is packed where it lies, and not in the directory", _ONLY)
    start = header + _LOCAL.size + long + more
    if start + size > end:
        raise data.bad(f"{name} reaches beyond what holds entries")
    return Place(start, size)


def _check_apart(entries: list[_Entry], places: Mapping[str, Place], bad: Callable[..., FormatError]) -> None:
    """Raise FormatError where entries share bytes, their headers included."""
    end, before = 0, ""
    for header, name in sorted((entry.header, entry.name) for entry in entries):
        if header < end:
            raise bad(f"{before} and {name} share bytes")
        start, size = places[name]
        end, before = start + size, name


def _content(data: Bytes, entry: _Entry, place: Place, most: int) -> bytes:
    """The bytes of an entry, held against its checksum: torch writes 0 where it is told to make none."""
    if place.size > most:
        raise data.bad(f"{entry.name} has {place.size} bytes, and at most {most} are read")
    raw = data.read(place.start, place.size)
    if entry.checksum not in (0, zlib.crc32(raw)):
        raise data.bad(f"the checksum of {entry.name} is not that of its bytes")
    return raw
