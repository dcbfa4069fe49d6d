"""The header of a GGUF file: metadata, and where each tensor lies. Bounded in time and memory, whatever it claims.

    "GGUF", version, tensors, keys; key, type, value …; name, axes, sizes, type, offset …; padding; data

Numbers are little-endian. Sizes run from the fastest axis to the slowest: shapes are the reverse. Offsets count from
the data, which begins at the next multiple of the alignment. Arrays that are long, or of texts, are walked and not
kept. Source: ggml `docs/gguf.md`, read with gguf 0.19 as the judge.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import IO

from ...errors import FormatError, NotSupported, listed
from ...lazy.tensor import File, Shape
from ..opening import regular, unreadable_file
from ..strict import POINTER, pointed
from .blocks import KINDS, OTHERS, Kind

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32
AGAIN = "it is damaged, or no GGUF: fetch it again"
MOST_KEYS = 1 << 16
MOST_TENSORS = 1 << 18
MOST_TEXTS = 1 << 21  # in arrays, all together: a vocabulary and its merges
MOST_BYTES = 1 << 28  # of the header
MOST_TEXT = 1 << 24  # bytes of one text that is kept
MOST_KEPT = 1 << 25  # of all of them
MOST_NAME = 1 << 12
MOST_NUMBERS = 1 << 14  # of an array that is kept
MOST_AXES = 4
CHUNK = 1 << 18

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_BOOL, _TEXT, _ARRAY = 7, 8, 9


@dataclass(frozen=True, slots=True)
class Many:
    """An array that was not kept: how many elements it has."""

    count: int


Value = int | float | bool | str | list[int] | list[float] | list[bool] | Many


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor of the file: `offset` is that of its bytes in the file."""

    name: str
    kind: Kind
    shape: Shape
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes that it has in the file."""
        return prod(self.shape) // self.kind.elements * self.kind.nbytes


@dataclass(frozen=True, slots=True)
class Header:
    """What the file says of itself. Every tensor lies in the file, and no two overlap."""

    file: File
    version: int
    metadata: Mapping[str, Value]
    tensors: tuple[Info, ...]

    def text(self, key: str) -> str:
        """The text at `key`; "" where there is none."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """The integer at `key`; None where there is none."""
        value = self.metadata.get(key)
        return value if type(value) is int else None


def is_gguf(path: str) -> bool:
    """Whether the file begins as GGUF does."""
    try:
        with open(path, "rb", opener=regular) as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_header(path: str) -> Header:
    """The checked header of the file at `path`.

    Raises FormatError for what is none, NotSupported for another byte order, version or type of tensors.
    """
    try:
        with open(path, "rb", opener=regular) as stream:
            status = os.fstat(stream.fileno())
            return _read(stream, File(path, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise unreadable_file(error, path) from error


class _Bytes:
    """The file's bytes one after another; never more than `CHUNK` of them, or one text, at once."""

    def __init__(self, stream: IO[bytes], file: File) -> None:
        self._stream, self.file = stream, file
        self._held, self._at, self._begin = b"", 0, 0
        self._end = min(file.size, MOST_BYTES)
        self.texts, self.kept = 0, 0

    @property
    def position(self) -> int:
        """How many bytes are behind."""
        return self._begin + self._at

    def bad(self, what: str, *names: str) -> FormatError:
        """The error for a broken header."""
        return FormatError(f"the GGUF header is wrong: {what}", where=[self.file.path, *names], help=AGAIN)

    def check(self, size: int, what: str) -> None:
        """Raise FormatError unless `size` more bytes are there."""
        if size <= self._end - self.position:
            return
        if self._end < self.file.size:
            raise self.bad(f"{what} would end past {MOST_BYTES} bytes, which no header has")
        raise self.bad(f"{what} would have {size} bytes, and {self._end - self.position} are left")

    def take(self, size: int, what: str) -> bytes:
        """The next `size` bytes."""
        if size > len(self._held) - self._at:
            self.check(size, what)
            self._begin += self._at
            rest = self._held[self._at :]
            self._held, self._at = rest + self._stream.read(max(size - len(rest), CHUNK)), 0
            if len(self._held) < size:
                raise self.bad(f"{what} is cut off")
        found = self._held[self._at : self._at + size]
        self._at += size
        return found

    def skip(self, size: int, what: str) -> None:
        """Leave out the next `size` bytes."""
        if size <= len(self._held) - self._at:
            self._at += size
            return
        self.check(size, what)
        self._begin, self._held, self._at = self.position + size, b"", 0
        self._stream.seek(self._begin)

    def skip_texts(self, count: int, what: str) -> None:
        """Leave out the next `count` texts."""
        while count:
            self.take(8, what)  # of the next one's length, so that some are held
            held, at = self._held, self._at - 8
            while count and (end := at + 8) <= len(held):
                at, count = end + int.from_bytes(held[at:end], "little"), count - 1
            self._at = min(at, len(held))
            self.skip(at - self._at, what)

    def number(self, code: str, what: str) -> int:
        """The next integer, of a code of `struct`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(code), what))[0]

    def text(self, what: str, most: int) -> str:
        """The next text, of at most so many bytes."""
        size = self.number("Q", what)
        if size > most:
            raise self.bad(f"{what} would have {size} bytes, and at most {most} are read")
        try:
            return self.take(size, what).decode()
        except UnicodeDecodeError as error:
            raise self.bad(f"{what} is no UTF-8") from error


def _read(stream: IO[bytes], file: File) -> Header:
    source = _Bytes(stream, file)
    begin = source.take(8, "the first word") if file.size >= 8 else stream.read(8)
    if begin == POINTER[:8]:
        raise pointed(lambda what: FormatError(what, where=[file.path], help=AGAIN))
    version = _version(source, begin)
    tensors, keys = source.number("Q", "the number of tensors"), source.number("Q", "the number of keys")
    if tensors > MOST_TENSORS or keys > MOST_KEYS:
        what = f"it would have {tensors} tensors and {keys} keys"
        raise source.bad(f"{what}; at most {MOST_TENSORS} and {MOST_KEYS} are read")
    metadata = _metadata(source, keys)
    alignment = _alignment(source, metadata)
    infos = _infos(source, tensors)
    data = -(-source.position // alignment) * alignment
    placed = tuple(Info(one.name, one.kind, one.shape, data + one.offset) for one in infos)
    _check_places(source, infos, placed, alignment)
    digest = _digest(stream, source.position)
    return Header(File(file.path, file.size, file.mtime_ns, digest), version, metadata, placed)


def _version(source: _Bytes, begin: bytes) -> int:
    """The version. Raises NotSupported for one that is not read, and for numbers in the other byte order."""
    if begin[:4] != MAGIC or len(begin) < 8:
        raise source.bad("it does not begin as GGUF does")
    version = int.from_bytes(begin[4:], "little")
    where = [source.file.path]
    if version and not version & 0xFFFF:
        tip = "convert it with gguf_convert_endian.py of llama.cpp first"
        raise NotSupported("the numbers of this GGUF are stored in the other byte order", where=where, help=tip)
    if version not in VERSIONS:
        tip = "make it again with a newer llama.cpp" if version == 1 else "a newer surgery may read it"
        raise NotSupported(f"GGUF of version {version} is not read: 2 and 3 are", where=where, help=tip)
    return version


def _metadata(source: _Bytes, count: int) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for number in range(count):
        key = source.text(f"the name of key {number}", MOST_NAME)
        if key in found:
            raise source.bad(f"the key {key!r} comes twice")
        found[key] = _value(source, source.number("I", f"the type of {key!r}"), key)
    return found


def _value(source: _Bytes, kind: int, key: str) -> Value:
    """The value of a key. Raises FormatError for a type that is none, NotSupported for arrays of arrays."""
    if kind == _TEXT:
        found = source.text(f"the text of {key!r}", MOST_TEXT)
        source.kept += len(found)
        if source.kept > MOST_KEPT:
            raise source.bad(f"its texts have more than {MOST_KEPT} characters")
        return found
    if kind == _ARRAY:
        return _array(source, key)
    return _numbers(source, kind, 1, key)[0]


def _numbers(source: _Bytes, kind: int, count: int, key: str) -> list[int] | list[float] | list[bool]:
    if kind not in _NUMBERS:
        raise source.bad(f"{key!r} is of type {kind}, and there is none such")
    code = f"<{count}{_NUMBERS[kind]}"
    found = list(struct.unpack(code, source.take(struct.calcsize(code), f"the value of {key!r}")))
    if kind != _BOOL:
        return found
    if any(one > 1 for one in found):
        raise source.bad(f"{key!r} is neither true nor false")
    return [bool(one) for one in found]


def _array(source: _Bytes, key: str) -> Value:
    kind, count = source.number("I", f"the type of {key!r}"), source.number("Q", f"the length of {key!r}")
    what = f"the array {key!r}"
    if kind == _ARRAY:
        raise source.bad(f"{what} holds arrays, which no program reads")
    if kind == _TEXT:
        source.texts += count
        if source.texts > MOST_TEXTS:
            raise source.bad(f"its arrays would hold {source.texts} texts, and at most {MOST_TEXTS} are read")
        source.skip_texts(count, what)
        return Many(count)
    if kind not in _NUMBERS:
        raise source.bad(f"{what} is of type {kind}, and there is none such")
    if count <= MOST_NUMBERS:
        return _numbers(source, kind, count, key)
    source.skip(count * struct.calcsize(_NUMBERS[kind]), what)
    return Many(count)


def _alignment(source: _Bytes, metadata: Mapping[str, Value]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if type(found) is not int or found < 1 or found & (found - 1):
        raise source.bad(f"general.alignment is {found!r}, and no power of two")
    return found


def _infos(source: _Bytes, count: int) -> list[Info]:
    """The table of tensors, with offsets as they are stored."""
    found: dict[str, Info] = {}
    for number in range(count):
        name = source.text(f"the name of tensor {number}", MOST_NAME)
        if name in found:
            raise source.bad("a tensor comes twice", name)
        found[name] = _info(source, name)
    return list(found.values())


def _info(source: _Bytes, name: str) -> Info:
    axes = source.number("I", f"the number of axes of {name!r}")
    if axes > MOST_AXES:
        raise source.bad(f"a tensor has {axes} axes, and ggml has at most {MOST_AXES}", name)
    *sizes, number, offset = struct.unpack(f"<{axes}QIQ", source.take(8 * axes + 12, f"the entry of {name!r}"))
    if number not in KINDS:
        if number not in OTHERS:
            raise source.bad(f"a tensor is of type {number}, and there is none such", name)
        tip = "make F16 of it with llama-quantize of llama.cpp, or take another file of the model"
        what = f"tensors of the type {OTHERS[number]} are not read"
        raise NotSupported(what, where=[source.file.path, name], help=tip)
    kind = KINDS[number]
    if prod(sizes) >= 1 << 63:
        raise source.bad(f"a tensor would have {prod(sizes)} elements", name)
    if (sizes[0] if sizes else 1) % kind.elements:
        raise source.bad(f"a row has {sizes[0] if sizes else 1} elements, and no whole blocks of {kind.name}", name)
    return Info(name, kind, tuple(reversed(sizes)), offset)


def _check_places(source: _Bytes, stored: Sequence[Info], placed: Sequence[Info], alignment: int) -> None:
    """Raise FormatError for tensors that are not aligned, lie outside of the file, or overlap."""
    size = source.file.size
    if wrong := [one.name for one in stored if one.offset % alignment]:
        raise source.bad(f"tensors do not begin at multiples of {alignment}", *listed(wrong))
    if outside := [f"{one.name}: to byte {one.offset + one.nbytes} of {size}" for one in placed if _ends(one) > size]:
        raise source.bad("tensors end past the file: it is cut off", *listed(outside))
    end, last = 0, ""
    for one in sorted((one for one in placed if one.nbytes), key=lambda one: one.offset):
        if one.offset < end:
            raise source.bad("two tensors overlap", last, one.name)
        end, last = _ends(one), one.name


def _ends(one: Info) -> int:
    return one.offset + one.nbytes


def _digest(stream: IO[bytes], size: int) -> str:
    """The SHA-256 of the header."""
    digest = hashlib.sha256()
    stream.seek(0)
    while size and (data := stream.read(min(size, CHUNK))):
        digest.update(data)
        size -= len(data)
    return digest.hexdigest()
