"""GGUF files that lie about themselves, and such as are not read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gguf_files import ARRAY, TEXT, U32, entry, key, laid_out, text

from .rows import OF_CHECKPOINTS, Row, put

ARCH = key("general.architecture", TEXT, text("llama"))
ONE = entry("a", [4], 0, 0)
DATA = bytes(16)


def number(name: str, value: int, kind: int = U32) -> bytes:
    return key(name, kind, struct.pack("<I", value))


def array(kind: int, count: int, raw: bytes = b"") -> bytes:
    return key("k", ARRAY, struct.pack("<IQ", kind, count) + raw)


HUGE = 1 << 63
HOSTILE = {
    "nothing": (b"", "does not begin"),
    "magic alone": (b"GGUF", "does not begin"),
    "another magic": (laid_out().replace(b"GGUF", b"GGML"), "does not begin"),
    "cut in the counts": (laid_out()[:20], "keys would have 8 bytes"),
    "tensors without end": (laid_out(counts=(HUGE, 0)), f"{HUGE} tensors"),
    "as many tensors as 64 bits say": (laid_out(counts=(2**64 - 1, 0)), "tensors and 0 keys"),
    "keys without end": (laid_out(counts=(0, HUGE)), f"{HUGE} keys"),
    "more keys than there are": (laid_out([ARCH], counts=(0, 3)), "comes twice"),
    "more tensors than there are": (laid_out([ARCH], [ONE], DATA, counts=(3, 1)), "would have|comes twice|cut off"),
    "a name of a terabyte": (laid_out([struct.pack("<Q", 1 << 40)]), "and at most"),
    "a text of a terabyte": (laid_out([text("k") + struct.pack("<IQ", TEXT, 1 << 40)]), "and at most"),
    "a text longer than the file": (laid_out([text("k") + struct.pack("<IQ", TEXT, 1 << 20)]), "are left"),
    "a text of 2^64 bytes": (laid_out([text("k") + struct.pack("<IQ", TEXT, 2**64 - 1)]), "and at most"),
    "a name that is no text": (laid_out([key(b"\xff\xfe", U32, DATA)]), "no UTF-8"),  # type: ignore[arg-type]
    "a key twice": (laid_out([number("k", 1), number("k", 1)]), "comes twice"),
    "a value of no type": (laid_out([key("k", 13, DATA)]), "type 13"),
    "a value of a type far away": (laid_out([key("k", 2**32 - 1, DATA)]), "there is none such"),
    "neither true nor false": (laid_out([key("k", 7, b"\x02")]), "neither true nor false"),
    "an array of arrays": (laid_out([array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 1000)]), "holds arrays"),
    "an array of no type": (laid_out([array(99, 1)]), "type 99"),
    "an array of 2^63 texts": (laid_out([array(TEXT, HUGE)]), "texts, and at most"),
    "an array of texts that are not there": (laid_out([array(TEXT, 1 << 20)]), "would have|are left"),
    "an array of 2^63 numbers": (laid_out([array(U32, HUGE)]), "are left"),
    "an array of some more numbers": (laid_out([array(U32, 100)]), "are left"),
    "alignment of nothing": (laid_out([number("general.alignment", 0)]), "no power of two"),
    "alignment of three": (laid_out([number("general.alignment", 24)]), "no power of two"),
    "alignment that is a text": (laid_out([key("general.alignment", TEXT, text("32"))]), "no power of two"),
    "alignment below nothing": (laid_out([number("general.alignment", 2**32 - 32, 5)]), "no power of two"),
    "alignment of all": (laid_out([number("general.alignment", 1 << 31)], [ONE], DATA), "end past the file"),
    "a tensor twice": (laid_out([], [ONE, entry("a", [4], 0, 32)], bytes(64)), "comes twice"),
    "tensors over each other": (laid_out([], [ONE, entry("b", [4], 0, 0)], DATA), "overlap"),
    "a tensor inside of one": (laid_out([], [entry("a", [64], 0, 0), entry("b", [1], 0, 32)], bytes(256)), "overlap"),
    "a tensor behind the file": (laid_out([], [entry("a", [4], 0, 1 << 40)], DATA), "end past the file"),
    "a tensor that wraps round": (laid_out([], [entry("a", [4], 0, 2**64 - 32)], DATA), "end past the file"),
    "a tensor that is cut off": (laid_out([], [ONE], DATA[:8]), "end past the file"),
    "a tensor between the steps": (laid_out([], [entry("a", [1], 0, 4)], DATA), "multiples of 32"),
    "sizes below nothing": (laid_out([], [entry("a", [2**64 - 1], 0, 0)], DATA), "elements"),
    "sizes whose product wraps round": (laid_out([], [entry("a", [1 << 32, 1 << 32], 0, 0)], DATA), "elements"),
    "a size of nothing times all": (laid_out([], [entry("a", [0, HUGE], 0, 1 << 50)], DATA), "end past the file"),
    "axes without end": (laid_out([], [text("a") + struct.pack("<I", 2**32 - 1)], DATA), "4294967295 axes"),
    "five axes": (laid_out([], [entry("a", [1] * 5, 0, 0)], DATA), "5 axes"),
    "half of a block": (laid_out([], [entry("a", [16], 8, 0)], DATA), "no whole blocks of Q8_0"),
    "a type that is none": (laid_out([], [entry("a", [4], 77, 0)], DATA), "type 77"),
    "a tensor's name of a gigabyte": (laid_out([], [struct.pack("<Q", 1 << 30)], DATA), "and at most"),
    "an empty name twice": (laid_out([], [entry("", [4], 0, 0), entry("", [4], 0, 32)], bytes(64)), "comes twice"),
}
UNREAD = {
    "the other byte order": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "other byte order"),
    "the first version": (laid_out(version=1), "version 1"),
    "a version to come": (laid_out(version=4), "version 4"),
    "codes on a lattice": (laid_out([], [entry("a", [256], 16, 0)], bytes(66)), "IQ2_XXS"),
    "three values": (laid_out([], [entry("a", [256], 34, 0)], bytes(54)), "TQ1_0"),
    "a type of old": (laid_out([], [entry("a", [256], 31, 0)], bytes(256)), "Q4_0_4_4"),
}


def rows() -> Iterator[Row]:
    """Each as a file of its own."""
    words = tuple(one.replace(" x", " x.gguf") for one in OF_CHECKPOINTS)
    for name, (content, says) in {**HOSTILE, **UNREAD}.items():
        make = partial(_made, content=content)
        yield Row(f"gguf: {name}", make, says, ("inspect x.gguf", "convert-files x.gguf -o w/o"), "x.gguf", words)


def _made(place: Path, content: bytes) -> None:
    put(place / "x.gguf", content)
