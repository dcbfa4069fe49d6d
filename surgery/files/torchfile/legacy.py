"""Files from before torch 1.6, which are no zip: five pickles in a row, then each storage with its length before it.

    magic number, 1001, {little_endian: …}, the object, [keys]; for each key 8 bytes with the number of elements, bytes

Where each storage lies follows by arithmetic: nothing of it is read. Source: torch 2.13, torch/serialization.py
`_legacy_save`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from ...errors import FormatError
from .archive import Archive, Place
from .records import read_pickles, told

_MAGIC = bytes.fromhex("8a0a6cfc9c46f920")  # the number as every protocol writes it
BEGIN = 24  # bytes that tell


def is_legacy(begin: bytes) -> bool:
    """Whether a file that begins so is one."""
    return begin[:1] == b"\x80" and _MAGIC in begin


PROTOCOL = 1001


def read_legacy(stream: IO[bytes], size: int, where: str, width: Any) -> tuple[Any, Archive]:
    """The object's records, and where its storages lie; `width` says of a persistent id its key and bytes an element.

    Raises FormatError.
    """
    (_, protocol, said, root, keys), at = read_pickles(stream, 5, where)
    stream.seek(0)
    raw = stream.read(at)

    def bad(what: str) -> FormatError:
        return FormatError(f"the file is wrong: {what}", where=[where], help="it is damaged; fetch it again")

    if protocol != PROTOCOL or not isinstance(said, dict) or not isinstance(keys, list):
        raise bad("it begins as torch's files of old do, and does not go on so")
    if said.get("little_endian") is not True:
        raise bad("its numbers are stored in the other byte order")
    widths: Mapping[str, tuple[int, int]] = width(root)
    storages: dict[str, Place] = {}
    for key in keys:
        if not isinstance(key, str) or key not in widths or key in storages:
            raise bad(f"the storage {told(key)} is listed, and none of that name is in the object, or twice")
        item, count = widths[key]
        stream.seek(at)
        if int.from_bytes(stream.read(8), "little") != count:
            raise bad(f"the storage {key} is not as long as the object says")
        storages[key] = Place(at + 8, count * item)
        at += 8 + count * item
    if at > size:
        raise bad("it is cut off")
    return root, Archive(raw, storages)
