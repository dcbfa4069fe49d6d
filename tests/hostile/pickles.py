"""Pickles and zips that were made to harm, as files of torch: nothing in them may run, nothing be allocated by their
numbers.
"""

from __future__ import annotations

import io
import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .rows import SHARD, Row, checkpoint

CANARY = Path("/tmp/canary-of-surgery")  # which is there where something ran
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def sized(text: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text


def number(value: int) -> bytes:
    raw = pickle.dumps(value, 2)
    return raw[2:-1]


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], storage: bytes = STORAGE) -> bytes:
    """A tensor of a storage of six floats."""
    sizes = b"".join(b"(" + b"".join(map(number, of)) + b"t" for of in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + sizes + b"\x89NtR"


def named(value: bytes) -> bytes:
    return b"\x80\x02}" + sized(b"a") + value + b"s."


def zipped(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


def archive(data: bytes, storage: bytes = b"\x00" * 24, *more: tuple[str, bytes]) -> bytes:
    return zipped([("x/data.pkl", data), ("x/byteorder", b"little"), ("x/data/0", storage), *more])


FINE = named(tensor(0, (2, 3), (3, 1)))


class Runs:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {CANARY}",)


def doubled(name: str) -> bytes:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return archive(FINE, b"\x00" * 24, (name, b"\x01" * 24))


def patched(raw: bytes, old: bytes, new: bytes, last: bool = False) -> bytes:
    at = raw.rfind(old) if last else raw.find(old)
    assert at >= 0 and len(old) == len(new)
    return raw[:at] + new + raw[at + len(old) :]


def entries_of(count: int, name: bytes, end: int) -> bytes:
    """A directory that says so often that an entry of that name lies at the begin, and its end."""
    entry = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<H", len(name)) + b"\0" * 16 + name
    size = len(entry) * count
    wide = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, end)
    wide += struct.pack("<4sLQL", b"PK\x06\x07", 0, end + size, 1)
    return entry * count + wide + b"PK\x05\x06" + b"\0" * 4 + b"\xff" * 12 + b"\0" * 2


def covering(raw: bytes) -> bytes:
    """The zip whose first storage is said to reach over the header of the second, and is as long as is said."""
    at, second = (raw.find(b"PK\x03\x04", raw.find(b"x/data/%d" % n) - 31) for n in (0, 1))
    size = struct.pack("<I", second + 20 - (at + 30 + len(b"x/data/0")))
    return moved_directory(moved_directory(raw, b"x/data/0", 20, size), b"x/data/0", 24, size)


def laughs(depth: int, begin: bytes, twice: bytes) -> bytes:
    """A value that holds the one before it twice, so often: each costs a few bytes."""
    at = [{ord("?"): n % 250, ord("!"): (n + 1) % 250} for n in range(depth)]
    steps = (bytes(named.get(code, code) for code in twice) for named in at)
    return begin + b"q\x00" + b"".join(steps)


# a list, a tuple, and a dictionary of what the memo holds at ?, twice, which the memo then holds at !
IN_LISTS, IN_TUPLES = b"0](h?h?eq!", b"0h?h?\x86q!"
IN_DICTIONARIES = b"0}(" + sized(b"a") + b"h?" + sized(b"b") + b"h?uq!"


def moved_directory(raw: bytes, name: bytes, field: int, value: bytes) -> bytes:
    """The zip with a field of an entry in the central directory changed."""
    at = raw.rfind(name) - 46
    assert raw[at : at + 4] == b"PK\x01\x02"
    return raw[: at + field] + value + raw[at + field + len(value) :]


FILES: dict[str, bytes] = {
    # what would run
    "os.system": archive(pickle.dumps({"a": Runs()}, 2)),
    "eval": archive(b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR."),
    "INST": archive(b"(S'touch /tmp/canary-of-surgery'\nios\nsystem\n."),
    "OBJ": archive(b"(cos\nsystem\nS'touch /tmp/canary-of-surgery'\no."),
    "EXT1": archive(b"\x80\x02\x82\x01."),
    "EXT4": archive(b"\x80\x02\x84\x01\x00\x00\x00."),
    "torch.load of bytes": archive(b"\x80\x02ctorch.storage\n_load_from_bytes\n(U\x01xtR."),
    "a buffer outside": archive(b"\x80\x05\x97."),
    "PERSID": archive(b"Pstorage\n."),
    # what would take memory, or time
    "a memo index of 2**31": archive(b"\x80\x02Kar\xff\xff\xff\x7f."),
    "bytes of 4 GB": archive(b"\x80\x03B\xff\xff\xff\xff."),
    "bytes of 2**62": archive(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"."),
    "text of 4 GB": archive(b"\x80\x02X\xff\xff\xff\xff."),
    "an integer of 2 GB": archive(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "an integer of many digits": archive(b"I" + b"9" * 100_000 + b"\n."),
    "a frame of 2**60": archive(b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"K\x01."),
    "marks": archive(b"\x80\x02" + b"(" * 300_000 + b"."),
    "lists in lists": archive(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
    "tuples in tuples": archive(b"\x80\x02)" + b"\x85" * 200_000 + b"."),
    "a list in itself": archive(b"\x80\x02]q\x00h\x00a."),
    "a dictionary in itself": archive(b"\x80\x02}q\x00" + sized(b"a") + b"h\x00s."),
    "a bytearray of 2 GB": archive(b"\x80\x02c__builtin__\nbytearray\n" + number(2**31 - 1) + b"\x85R."),
    "expanded to 2**40": archive(named(tensor(0, (2**20, 2**20), (0, 0)))),
    "more axes than a tensor has": archive(named(tensor(0, (1,) * 3000, (1,) * 3000))),
    # what lies about the storage
    "an offset beyond it": archive(named(tensor(7, (2,), (1,)))),
    "an offset below it": archive(named(tensor(-1, (2,), (1,)))),
    "strides beyond it": archive(named(tensor(0, (2, 3), (100, 1)))),
    "a negative stride": archive(named(tensor(5, (2,), (-1,)))),
    "a negative size": archive(named(tensor(0, (-2,), (1,)))),
    "sizes of 2**70": archive(named(tensor(0, (2**70,), (1,)))),
    "sizes without strides": archive(named(tensor(0, (2, 3), (1,)))),
    "more elements than bytes": archive(FINE, b"\x00" * 20),
    "fewer elements than bytes": archive(FINE, b"\x00" * 28),
    "no such storage": zipped([("x/data.pkl", FINE)]),
    "a storage above the folder": archive(
        named(tensor(0, (2,), (1,), STORAGE.replace(b"X\x01\x00\x00\x000", sized(b"../../../etc/passwd"))))
    ),
    "a storage of an unknown type": archive(
        named(tensor(0, (2,), (1,), STORAGE.replace(b"FloatStorage", b"LostStorage")))
    ),
    # what lies in the pickle
    "a key twice": archive(b"\x80\x02}" + (sized(b"a") + tensor(0, (2,), (1,)) + b"s") * 2 + b"."),
    "two names that are one": archive(
        b"\x80\x02}"
        + sized(b"a.b")
        + tensor(0, (2,), (1,))
        + b"s"
        + sized(b"a")
        + b"}"
        + sized(b"b")
        + tensor(0, (2,), (1,))
        + b"ss."
    ),
    "nothing": archive(b""),
    "cut off": archive(FINE[:-20]),
    "two values": archive(b"\x80\x02K\x01K\x02."),
    "an empty stack": archive(b"\x80\x02."),
    "a mark alone": archive(b"\x80\x02(."),
    "a text": archive(b"\x80\x02" + sized(b"hello") + b"."),
    "no memo": archive(b"\x80\x02h\x05."),
    "unknown opcode": archive(b"\x80\x02\xfe."),
    "entries of a number": archive(b"\x80\x02K\x01K\x02K\x03s."),
    "no tensor": archive(pickle.dumps({"a": 1, "b": [1, 2]}, 2)),
    "half a character": archive(b"\x80\x02}" + sized(b"\xed\xa0\x80") + tensor(0, (2,), (1,)) + b"s."),
    "a name that a header has for itself": archive(
        b"\x80\x02}" + sized(b"__metadata__") + tensor(0, (2,), (1,)) + b"s."
    ),
    "no name": archive(b"\x80\x02" + tensor(0, (2,), (1,)) + b"."),
    # what costs more with each look
    "lists of one tensor, 2**40 times": archive(b"\x80\x02" + laughs(40, tensor(0, (2,), (1,)), IN_LISTS) + b"."),
    "dictionaries of one tensor, 2**40 times": archive(
        b"\x80\x02" + laughs(40, tensor(0, (2,), (1,)), IN_DICTIONARIES) + b"."
    ),
    "lists of nothing, 2**200 times": archive(b"\x80\x02" + laughs(200, b"]", IN_LISTS) + b"."),
    "a key that is 2**200 values": archive(b"\x80\x02}" + laughs(200, b")", IN_TUPLES) + b"K\x01s."),
    "such a key, twice": archive(b"\x80\x02}" + laughs(200, b")", IN_TUPLES) + b"q\xf0K\x01sh\xf0K\x01s."),
    "a call of it as a key, twice": archive(
        b"\x80\x02}ca\nb\n" + laughs(200, b")", IN_TUPLES) + b"Rq\xf0K\x01sh\xf0K\x01s."
    ),
    "sizes of it": archive(
        named(b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\x00" + laughs(200, b")", IN_TUPLES) + b")\x89NtR")
    ),
    "a storage of its type": archive(
        named(
            b"ctorch._utils\n_rebuild_tensor_v2\n(("
            + sized(b"storage")
            + laughs(200, b")", IN_TUPLES)
            + sized(b"0")
            + sized(b"cpu")
            + b"K\x06tQK\x00))\x89NtR"
        )
    ),
    "a size of 16,000 bits": archive(named(tensor(0, (2**16_000,), (1,)))),
    "an offset of 16,000 bits": archive(named(tensor(2**16_000, (1,), (1,)))),
    "a key of 16,000 bits": archive(b"\x80\x02}" + number(2**16_000) + tensor(9, (2,), (1,)) + b"s."),
    "a key of 16,000 bits, without a tensor": archive(b"\x80\x02}" + number(2**16_000) + b"Ns."),
    "an integer of 100 kB": archive(b"\x80\x02\x8b" + struct.pack("<I", 100_000) + b"\x01" * 100_000 + b"."),
    "a bytearray of 2**62": archive(b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b"."),
    "4,000,000 dictionaries": archive(b"\x80\x02" + b"}" * 4_000_000 + b"."),
    "2,000,000 tuples in tuples": archive(b"\x80\x02)" + b"\x85" * 2_000_000 + b"."),
    "4,000,000 marks": archive(b"\x80\x02" + b"(" * 4_000_000 + b"."),
    "a memo with a million gaps": archive(
        b"\x80\x02N" + b"".join(b"r" + struct.pack("<I", 9 * n + 9) for n in range(1_000_000)) + b"."
    ),
    "more bytes than a pickle has": archive(b"\x80\x02" + b"N0" * 32_000_000 + b"N."),
    # what lies in the zip
    "no end of its own": archive(FINE) + b"more",
    "something before it": patched(archive(FINE), b"PK\x03\x04", b"PK\x03\x04") and b"PK\x03\x04before" + archive(FINE),
    "another end in its comment": archive(FINE)[:-2] + struct.pack("<H", 22) + b"PK\x05\x06" + b"\0" * 18,
    "more disks": patched(archive(FINE), b"PK\x05\x06\0\0", b"PK\x05\x06\1\0"),
    "more entries than it has": archive(FINE)[:-14] + struct.pack("<2H", 9, 9) + archive(FINE)[-10:],
    "fewer entries than it has": archive(FINE)[:-14] + struct.pack("<2H", 2, 2) + archive(FINE)[-10:],
    "a million entries": b"PK\x03\x04" + entries_of(1_000_000, b"x", 4),
    "400,000 entries of a name": b"PK\x03\x04" + entries_of(400_000, b"x", 4),
    "2**60 entries": b"PK\x03\x04"
    + entries_of(1, b"x", 4).replace(struct.pack("<2Q", 1, 1), struct.pack("<2Q", 2**60, 2**60)),
    "a directory of 2**60 bytes": b"PK\x03\x04"
    + entries_of(1, b"x", 4).replace(struct.pack("<2Q", 47, 4), struct.pack("<2Q", 2**60, 4)),
    "a NUL in a name": archive(FINE, b"\x00" * 24, ("x/data/1!", b"")).replace(b"x/data/1!", b"x/data/1\0"),
    "a control character in a name": archive(FINE, b"\x00" * 24, ("x/data/\x1b[2J", b"")),
    "a name that is no text": patched(
        archive(FINE, b"\x00" * 24, ("x/\xe9", b"")), "x/\xe9".encode(), b"x/\xff\xff", last=True
    ),
    "a storage over another": covering(archive(FINE, b"\x00" * 24, ("x/data/1", b"\x00" * 24))),
    "packed where it lies": patched(archive(FINE), b"PK\x03\x04\x14\0\0\0\0\0", b"PK\x03\x04\x14\0\0\0\x08\0"),
    "another checksum of the pickle": moved_directory(archive(FINE), b"x/data.pkl", 16, b"\x01\x02\x03\x04"),
    "another checksum of the byte order": moved_directory(archive(FINE), b"x/byteorder", 16, b"\x01\x02\x03\x04"),
    "a zip in a zip": zipped([("inner.pt", archive(FINE))]),
    "packed": zipped([("x/data.pkl", FINE), ("x/data/0", b"\x00" * 24)], zipfile.ZIP_DEFLATED),
    "two storages of a name": doubled("x/data/0"),
    "two pickles": archive(FINE, b"\x00" * 24, ("y/data.pkl", FINE)),
    "no pickle": zipped([("x/data/0", b"\x00" * 24)]),
    "the other byte order": zipped([("x/data.pkl", FINE), ("x/byteorder", b"big"), ("x/data/0", b"\x00" * 24)]),
    "an empty zip": zipped([]),
    "a zip cut off": archive(FINE)[:-30],
    "encrypted": moved_directory(archive(FINE), b"x/data/0", 8, b"\x01\x00"),
    "no zip at all": b"PK\x03\x04" + b"\x00" * 200,
    "a size beyond the file": moved_directory(
        moved_directory(archive(FINE), b"x/data/0", 20, struct.pack("<I", 2**31)),
        b"x/data/0",
        24,
        struct.pack("<I", 2**31),
    ),
    "an offset elsewhere": moved_directory(archive(FINE), b"x/data/0", 42, struct.pack("<I", 3)),
    "an offset at another entry": moved_directory(archive(FINE), b"x/data/0", 42, struct.pack("<I", 0)),
    "called otherwise where it lies": patched(archive(FINE), b"x/data/0", b"x/data/1"),
    # what is old
    "legacy, cut off": bytes.fromhex("80028a0a6cfc9c46f9206aa8501935"),
    "legacy, another protocol": b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1002, {}, {}, [])),
    "legacy, storages that are not there": b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, ["7"])
    ),
    "legacy, a storage of no name": b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [{}, [[]]])
    ),
    "legacy, big": b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": False}, {}, [])
    ),
    "legacy, a view of a storage": b"".join(
        pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    )
    + named(tensor(0, (2,), (1,), STORAGE[:-2] + b"(" + sized(b"0") + b"K\x01K\x02ttQ"))
    + pickle.dumps(["0"], 2)
    + struct.pack("<Q", 6)
    + b"\0" * 24,
    "a tar": b"storages" + b"\x00" * 500,
}


def doubling(depth: int) -> Any:
    """A tuple that holds the one before it twice, so often."""
    made: Any = ()
    for _ in range(depth):
        made = (made, made)
    return made


def rows() -> Iterator[Row]:
    """Each as the weights of a model."""
    for name, content in FILES.items():
        yield checkpoint(f"torch: {name}", "pytorch_model.bin", content, "", files={SHARD: None}, memory=128 << 20)
