"""The safetensors format: headers parsed and checked from raw bytes, and written as `save_file` writes them.

A file is 8 bytes (little-endian header length N), N bytes of JSON, then the tensors' bytes. Every clause of the
format is checked in `parse_header`, and nowhere else:

    N is at most 100 MB, and the file is long enough          the header is a UTF-8 JSON object that begins with `{`
    no key comes twice                                        `__metadata__` maps strings to strings
    dtypes are known                                          shapes are non-negative integers, products below 2**64
    offsets match dtype and shape                             offsets leave no hole, do not overlap, end where the
    file ends

Source: the format's own description and `safetensors/src/tensor.rs`, version 0.8.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from json.encoder import encode_basestring
from typing import Any

from ..errors import FormatError, shown
from ..lazy.dtypes import DTYPES, Dtype
from ..lazy.tensor import File, Shape, Stored
from .opening import regular, unreadable_file
from .plain_header import METADATA, Entry, in_order, plain, sized
from .strict import POINTER, parse_object, pointed

MAX_HEADER = 100_000_000
MORE_SHARDS = (
    "--max-shard-size 5GB writes as many shards as their headers need; an adapter, which is one file, can be of fewer"
    " modules"
)
_PARSED: ContextVar[dict[tuple[str, tuple[int, ...]], tuple[File, Header]] | None] = ContextVar("parsed", default=None)


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `entries` are in the order of their offsets; `data` is where the data begins in the file."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str] | None
    data: int

    @property
    def end(self) -> int:
        """Size in bytes of the whole file."""
        return self.data + max((e.stop for e in self.entries.values()), default=0)


def parse_header(raw: bytes, file_size: int | None, where: str) -> Header:
    """The header in `raw`, the JSON bytes after the length of a file of `file_size` bytes called `where`; None where
    the file is not at hand, and is what its header says.
    """

    def bad(what: str, name: str | None = None) -> FormatError:
        place = where if name is None else f"{where}: {name}"
        return FormatError(
            what, where=[place], help="the file is damaged or was not written by safetensors; fetch it again"
        )

    if raw[:1] != b"{":
        raise bad("the header does not begin with `{`")
    metadata, entries = plain(raw) or _from_json(raw, bad)
    ordered = in_order(entries)
    end = 0
    for name, entry in ordered.items():
        if entry.start != end:
            kind = "overlap" if entry.start < end else "leave a hole"
            raise bad(f"offsets {kind}: the tensor begins at byte {entry.start}, the one before ends at {end}", name)
        end = entry.stop
    data = 8 + len(raw)
    if file_size is not None and data + end != file_size:
        kind = "is cut off" if file_size < data + end else "has bytes that no tensor owns"
        raise bad(f"the file {kind}: {file_size} bytes, but the header accounts for {data + end}")
    return Header(ordered, metadata, data)


def _from_json(raw: bytes, bad: Callable[..., FormatError]) -> tuple[dict[str, str] | None, dict[str, Entry]]:
    """The metadata and the entries of a header that may be written in any way that JSON allows."""
    content = parse_object(raw, lambda what: bad(f"the header is wrong: {what}"), flat=True)
    metadata = content.pop(METADATA, None)
    if metadata is not None and not (
        isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())
    ):
        raise bad("`__metadata__` may only map strings to strings")
    return metadata, {name: _parse_entry(value, partial(bad, name=name)) for name, value in content.items()}


def _parse_entry(value: Any, bad: Callable[[str], FormatError]) -> Entry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise bad("a tensor needs `dtype`, `shape` and `data_offsets`, and nothing else")
    name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not (isinstance(name, str) and name in DTYPES):
        raise bad(f"unknown dtype {shown(name)}; known are {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise bad(f"the shape {shown(shape)} is not a list of non-negative integers")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(n) is int and n >= 0 for n in offsets)):
        raise bad(f"the offsets {shown(offsets)} are not two non-negative integers")
    try:
        dtype, nbytes = sized(name, tuple(shape))
    except ValueError as error:
        raise bad(str(error)) from error
    if offsets[1] - offsets[0] != nbytes:
        raise bad(f"{dtype} {shape} takes {nbytes} bytes, but the offsets {offsets} span {offsets[1] - offsets[0]}")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def encode_header(tensors: Mapping[str, tuple[Dtype, Shape]], metadata: Mapping[str, str] | None) -> bytes:
    """Length and JSON as `save_file` writes them: tensors by descending dtype rank, then name; padded to 8 bytes.

    Several metadata keys come in random order from the library; here they are sorted.
    """
    if METADATA in tensors:
        raise FormatError(
            f"no tensor can be called {METADATA}", help="rename it: the format keeps this name for itself"
        )
    parts, offset = [], 0
    if metadata is not None:
        parts.append(f'"{METADATA}":{_dumps(dict(sorted(metadata.items())))}')
    for name in in_file_order(tensors):
        dtype, shape = tensors[name]
        stop = offset + math.prod(shape) * dtype.bits // 8
        parts.append(_entry(name, dtype, shape, offset, stop))
        offset = stop
    raw = ("{" + ",".join(parts) + "}").encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise FormatError(f"a header of {len(raw)} bytes would be above the format's {MAX_HEADER}", help=MORE_SHARDS)
    return len(raw).to_bytes(8, "little") + raw


def _entry(name: str, dtype: Dtype, shape: Shape, start: int, stop: int) -> str:
    size = ",".join(map(str, shape))
    return f'{encode_basestring(name)}:{{"dtype":"{dtype}","shape":[{size}],"data_offsets":[{start},{stop}]}}'


def bytes_in_header(name: str, dtype: Dtype, shape: Shape, end: int) -> int:
    """How many bytes of a header a tensor takes at most, where the data ends at byte `end` or before."""
    return len(_entry(name, dtype, shape, end, end).encode()) + 1  # the comma


def metadata_in_header(metadata: Mapping[str, str]) -> int:
    """The same of `__metadata__`, with all that stands around it and the tensors."""
    return len(_dumps({METADATA: metadata}).encode()) + 16


def padded_header(header: bytes, spaces: int) -> bytes:
    """A header, length and all, that ends in so many more spaces: the data begins so much later."""
    raw = header[8:] + b" " * spaces
    if len(raw) > MAX_HEADER:
        raise FormatError(f"a header of {len(raw)} bytes would be above the format's {MAX_HEADER}")
    return len(raw).to_bytes(8, "little") + raw


def in_file_order(tensors: Mapping[str, tuple[Dtype, Shape]]) -> list[str]:
    """The names in the order in which `save_file` stores their tensors."""
    return sorted(tensors, key=lambda name: (-tensors[name][0].rank, name))


@contextmanager
def reading_once() -> Iterator[None]:
    """Inside, the header of a file that stays as it is is parsed once, however often it is asked for."""
    token = _PARSED.set({})
    try:
        yield
    finally:
        _PARSED.reset(token)


def read_header(path: str, *, where: str | None = None) -> tuple[File, Header]:
    """The checked header of the file at `path`; reads nothing else. The file's digest is that of its header."""
    where = where or path
    try:
        with open(path, "rb", opener=regular) as stream:
            status = os.fstat(stream.fileno())
            parsed, key = _PARSED.get(), (os.path.abspath(path), identity(status))
            if parsed is not None and key in parsed:
                return parsed[key]
            length = header_length(stream.read(len(POINTER)), status.st_size, where)
            stream.seek(8)
            raw = stream.read(length)
    except OSError as error:
        raise unreadable_file(error, where) from error
    digest = hashlib.sha256(raw).hexdigest()
    file = File(os.path.abspath(path), status.st_size, status.st_mtime_ns, digest, header=digest)
    found = file, parse_header(raw, status.st_size, where)
    if parsed is not None:
        parsed[key] = found
    return found


def identity(status: os.stat_result) -> tuple[int, ...]:
    """What changes with a file, or with what is in it."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def header_alone(raw: bytes, where: str) -> Header:
    """The header in `raw`, length and all, without the file that it is of: what it says is what it must be."""
    if int.from_bytes(raw[:8], "little") != len(raw) - 8:
        raise FormatError("the header's length is not what it says", where=[where])
    return parse_header(raw[8:], None, where)


def header_length(begin: bytes, file_size: int, where: str) -> int:
    """How many bytes of JSON follow the first eight of a file, which are in `begin`, with what follows them."""
    if begin.startswith(POINTER):
        raise pointed(lambda what: FormatError(what, where=[where]))
    length = int.from_bytes(begin[:8], "little")
    if file_size < 8 or length > MAX_HEADER or 8 + length > file_size:
        raise FormatError(
            f"the file is not safetensors: {file_size} bytes, and its first eight ask for a header of {length}",
            where=[where],
            help="a broken download looks like this; fetch the file again",
        )
    return length


def tensors_of(file: File, header: Header) -> dict[str, Stored]:
    """The lazy tensors of a file."""
    return {n: Stored(e.dtype, e.shape, file, header.data + e.start) for n, e in header.entries.items()}


class Tensors(Mapping[str, Stored]):
    """The lazy tensors of a file, each made when it is asked for: their names cost nothing."""

    def __init__(self, file: File, header: Header) -> None:
        self._file, self._header = file, header

    def __getitem__(self, name: str) -> Stored:
        entry = self._header.entries[name]
        return Stored(entry.dtype, entry.shape, self._file, self._header.data + entry.start)

    def __iter__(self) -> Iterator[str]:
        return iter(self._header.entries)

    def __len__(self) -> int:
        return len(self._header.entries)

    def __contains__(self, name: object) -> bool:
        return name in self._header.entries


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
