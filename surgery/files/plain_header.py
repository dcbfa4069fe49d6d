"""A header that is written as all writers write it, read in one pass, without the dictionaries that JSON would need:
of a million tensors these would be a gigabyte.

The law: what is read here, the JSON reader reads as the same. What is written in another way, or wrong, is left to it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from operator import mul
from typing import NamedTuple

from ..errors import FormatError, shown
from ..lazy.dtypes import DTYPES, Dtype
from ..lazy.tensor import Shape
from .strict import LONE, parse_object

METADATA = "__metadata__"
_TEXT = rb'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"'
_METADATA = re.compile(
    rb'\{"__metadata__": ?(\{(?:' + _TEXT + rb": ?" + _TEXT + rb"(?:, ?(?=\")|(?=\})))*\}), ?(?=\")", re.S
)
_HEAD = re.compile(
    rb'"dtype": ?"(?P<dtype>\w+)", ?"shape": ?\[(?P<shape>(?:N(?:, ?N)*)?)\], ?"data_offsets": ?'.replace(
        b"N", rb"(?:0|[1-9][0-9]{0,19})"
    )
)
_SPACED = re.compile(_TEXT + b": ")
_PIECE = 1 << 20  # bytes of the header that are cut at a time


class Entry(NamedTuple):
    """A tensor in a file: `start` and `stop` are bytes from the begin of the data, as the header has them."""

    dtype: Dtype
    shape: Shape
    start: int
    stop: int


def sized(name: str, shape: Shape) -> tuple[Dtype, int]:
    """The dtype called so, and the bytes of such a tensor. Raises ValueError that says what is wrong."""
    dtype = DTYPES.get(name)
    if dtype is None:
        raise ValueError(f"unknown dtype {shown(name)}; known are {', '.join(DTYPES)}")
    bits = math.prod(shape) * dtype.bits
    # safetensors multiplies from left to right, so that (2**40, 2**40, 0) overflows on the way to 0
    if bits >= 2**64 or (not bits and max(*shape, *accumulate(shape, mul), 0) >= 2**64):
        raise ValueError(f"the shape {shown(list(shape))} overflows 64 bits")
    if bits % 8:
        raise ValueError(f"{dtype} {shown(list(shape))} does not fill whole bytes")
    return dtype, bits // 8


def plain(raw: bytes) -> tuple[dict[str, str] | None, dict[str, Entry]] | None:
    """The metadata and the entries of a header; None where it is not written plainly, or not right."""
    try:
        begin = _METADATA.match(raw)
        metadata = parse_object(begin[1], FormatError) if begin else None
        entries = _entries(raw, begin.end() if begin else 1)
    except (FormatError, ValueError):  # such as text that is not UTF-8
        return None
    return None if entries is None else (metadata, entries)


def _entries(raw: bytes, at: int) -> dict[str, Entry] | None:
    """The entries from byte `at` on, each of which begins where the one before stops."""
    space = b" " if _SPACED.match(raw, at) else b""
    between, opening, comma = b"}," + space + b'"', b'":' + space + b"{", b"," + space
    kinds: dict[bytes, tuple[Dtype, Shape, int]] = {}
    found: dict[str, Entry] = {}
    count = stop = 0
    for piece in _pieces(raw, at, between):
        for text in piece.split(between):
            called, _, said = text.partition(opening)
            head, _, offsets = said.rpartition(b"[")
            dtype, shape, nbytes = kinds.get(head) or kinds.setdefault(head, _kind(head))
            start, stop = stop, stop + nbytes
            if offsets != b"%d%b%d]" % (start, comma, stop):
                return None
            found[_name(called)] = Entry(dtype, shape, start, stop)
            count += 1
    return found if len(found) == count and METADATA not in found else None


def _pieces(raw: bytes, at: int, between: bytes) -> Iterator[bytes]:
    """The text of the entries from byte `at` on, some at a time, cut between two of them. Raises ValueError where it
    does not begin or end as it must.
    """
    end = raw.rfind(b"}}")
    if raw[at : at + 1] != b'"' or end < at or raw[end + 2 :].strip(b" \t\r\n"):
        raise ValueError("no entries, or more than these")
    at += 1
    while (cut := raw.find(between, at + _PIECE, end)) >= 0:
        yield raw[at:cut]
        at = cut + len(between)
    yield raw[at:end]


def _kind(head: bytes) -> tuple[Dtype, Shape, int]:
    """Dtype, shape and bytes of an entry whose text before its offsets is this."""
    found = _HEAD.fullmatch(head)
    if not found:
        raise ValueError("an entry that is not written plainly")
    shape = tuple(map(int, found["shape"].split(b","))) if found["shape"] else ()
    dtype, nbytes = sized(found["dtype"].decode(), shape)
    return dtype, shape, nbytes


def _name(called: bytes) -> str:
    if b'"' in called or b"\\" in called or not (name := called.decode()).isprintable():
        name = str(json.loads(b'"' + called + b'"'))
        if LONE.search(name):
            raise ValueError("half of a surrogate pair is not text")
    return name


def in_order(entries: Mapping[str, Entry]) -> Mapping[str, Entry]:
    """The entries in the order of their offsets."""
    if all(a.start <= b.start and a.stop <= b.stop for a, b in pairwise(entries.values())):
        return entries
    return dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
