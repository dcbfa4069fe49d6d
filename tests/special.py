"""Values that go wrong in silence: NaN with payloads, infinities, denormal numbers, zeros of both signs, and tensors
of no elements or no axes; written and read as bytes, by nobody's library.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

Raw = dict[str, tuple[str, tuple[int, ...], bytes]]

WORDS = {
    "F64": ("<Q", (0, 1 << 63, 1, (1 << 63) + 1, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, (0xFFF0 << 48) + 77, 1)),
    "F32": ("<I", (0, 1 << 31, 1, 0x80000001, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFF80004D, 0x7F800001, 0x3F800000)),
    "F16": ("<H", (0, 0x8000, 1, 0x8001, 0x7C00, 0xFC00, 0x7E00, 0xFC4D, 0x7BFF, 0x3C00)),
    "BF16": ("<H", (0, 0x8000, 1, 0x8001, 0x7F80, 0xFF80, 0x7FC0, 0xFF8D, 0x7F7F, 0x3F80)),
}  # fmt: skip
BYTES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F4", "U8", "I8")


def words(dtype: str) -> bytes:
    """What a dtype has of them; of 8 bits and fewer, every pattern."""
    if dtype in BYTES:
        return bytes(range(256))
    form, patterns = WORDS[dtype]
    return b"".join(struct.pack(form, one) for one in patterns)


def every() -> Raw:
    """A tensor of each dtype that holds all of them, and tensors without elements or axes."""
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F4": 4}
    found = {f"zoo.{d}": (d, (len(words(d)) * 8 // bits.get(d, 8),), words(d)) for d in (*WORDS, *BYTES)}
    nan = words("F32")[24:28]
    return found | {
        "zoo.scalar": ("F32", (), nan),
        "zoo.empty": ("F32", (0,), b""),
        "zoo.rows": ("F16", (0, 5), b""),
        "zoo.columns": ("BF16", (3, 0), b""),
    }


def read(folder: Path) -> Raw:
    """Every tensor of every safetensors file in the folder."""
    found: Raw = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + size])
        header.pop("__metadata__", None)
        for name, said in header.items():
            start, stop = (8 + size + at for at in said["data_offsets"])
            found[name] = (said["dtype"], tuple(said["shape"]), raw[start:stop])
    return found


def write(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """One safetensors file."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"".join(data for _, _, data in tensors.values()))


def sprinkled(tensors: Raw) -> Raw:
    """The tensors with such values at their begin and their end."""
    made: Raw = {}
    for name, (dtype, shape, data) in tensors.items():
        some = words(dtype) if dtype in WORDS else b""
        made[name] = (
            dtype,
            shape,
            some + data[len(some) : -len(some)] + some if 0 < 2 * len(some) <= len(data) else data,
        )
    return made
