"""Undo records and manifests that lie."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from .rows import OF_CHECKPOINTS, Row, made_of, sparse
from .rows import put as put_file

Facts = dict[str, Any]
NAME = "model.layers.0.self_attn.o_proj.weight"
MANIFEST = ".surgery/manifest.json"


def base_record(folder: Path) -> Path:
    return folder / ".surgery" / "base.undo"


def shard_record(folder: Path) -> Path:
    return next((folder / ".surgery" / "undo").iterdir())


def parts(path: Path) -> tuple[Facts, Facts, dict[str, bytes]]:
    """(the header without its metadata, what the record says, the tensors' bytes by name)."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    said, data = json.loads(header.pop("__metadata__")["undo"]), raw[8 + length :]
    return header, said, {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}


def put(path: Path, header: Facts, said: Facts, held: dict[str, bytes]) -> None:
    """A record of these parts, sealed; U8 tensors have the shapes that their bytes give them."""
    raw, at, entries = json.dumps(said), 0, dict[str, Any]()
    for name, entry in header.items():
        shape = [len(held[name])] if len(entry["shape"]) == 1 and entry["dtype"] == "U8" else entry["shape"]
        entries[name] = {**entry, "shape": shape, "data_offsets": [at, at + len(held[name])]}
        at += len(held[name])
    entries["__metadata__"] = {"undo": raw, "sha256": hashlib.sha256(raw.encode()).hexdigest()}
    head = json.dumps(entries).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + b"".join(held[name] for name in header))


def zeros(nbytes: int) -> bytes:
    """What unpacks to so many zeros."""
    packer = zstandard.ZstdCompressor(level=3).compressobj(size=nbytes)
    piece = bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(nbytes >> 20)) + packer.flush()


TERABYTE = bytes.fromhex("28b52ffd") + bytes((0b1100_0000, 0x50)) + (10**12).to_bytes(8, "little") + b"\1\0\0"


Change = Callable[[Facts, Facts, dict[str, bytes]], object]


def changed(find: Callable[[Path], Path], change: Change) -> Callable[[Path], None]:
    """`x`: the merge, with something else in one of its records."""

    def make(place: Path) -> None:
        shutil.copytree(place / "merged", place / "x")
        header, said, held = parts(path := find(place / "x"))
        change(header, said, held)
        put(path, header, said, held)

    return make


def facts(**more: Any) -> Change:
    return lambda header, said, held: said.update(more)


def less(key: str) -> Change:
    return lambda header, said, held: said.pop(key)


def recipe(**more: Any) -> Change:
    """What the recipe of a tensor says."""
    return lambda header, said, held: said["tensors"][NAME].update(more)


def nested(levels: int) -> Any:
    tree: Any = "after"
    for _ in range(levels):
        tree = {"reshape": tree, "shape": [16, 16]}
    return tree


def scaled(scale: str) -> Change:
    def change(header: Facts, said: Facts, held: dict[str, bytes]) -> None:
        said["tensors"][NAME]["predicted"]["deltas"][0][2] = scale

    return change


def swapped(header: Facts, said: Facts, held: dict[str, bytes]) -> None:
    (one, first), (other, second), *rest = said["tensors"].items()
    said["tensors"] = {other: first, one: second, **dict(rest)}


def sizes(*claimed: int) -> Change:
    """Frames of a tensor that are said to be so long."""

    def change(header: Facts, said: Facts, held: dict[str, bytes]) -> None:
        number = list(said["tensors"]).index(NAME)
        held[f"{number}.sizes"] = b"".join(size.to_bytes(4, "little") for size in claimed)

    return change


def blob(name: str, content: bytes) -> Change:
    return lambda header, said, held: held.update({name: content})


CONFIG, HEADER = "file/config.json", "header/model.safetensors"
IN_THE_BASE: dict[str, Change] = {
    **{f"without {key}": less(key) for key in ("files", "shards", "history", "notes", "stem", "index_name")},
    "notes that are numbers": facts(notes=[5]),
    "files that are a list": facts(files=["config.json"]),
    "files that lead out": facts(files={"../../outside/secret": {"size": 5, "sha256": "0" * 64}}),
    "files below nothing": facts(files={"config.json": {"size": -1, "sha256": "0" * 64}}),
    "shards that lead out": facts(shards=["../../outside/model.safetensors"]),
    "shards of control characters": facts(shards=["\x1b[2J\x9b31m"]),
    "a stem that leads out": facts(stem="../../outside/x"),
    "an index that leads out": facts(index_name="/etc/passwd"),
    "history that is none": facts(history=[{"surgery": [1]}]),
    "a file that grows to 256 MB": blob(CONFIG, zeros(1 << 28)),
    "a file of a terabyte": blob(CONFIG, TERABYTE),
    "a header that grows to 256 MB": blob(HEADER, zeros(1 << 28)),
    "a header of a terabyte": blob(HEADER, TERABYTE),
    "a file that is no frame": blob(CONFIG, bytes(100)),
}
IN_A_SHARD: dict[str, Change] = {
    "tensors that are a list": facts(tensors=[1]),
    "without tensors": less("tensors"),
    "a dtype that is none": recipe(dtype="F33"),
    "a shape below nothing": recipe(shape=[-16, -16]),
    "a shape that overflows": recipe(shape=[1 << 40, 1 << 40]),
    "another shape": recipe(shape=[16, 17]),
    "a tree of 490 levels": recipe(predicted=nested(490)),
    "a scale of 0x1p99999": scaled("0x1p99999"),
    "a scale that is no number": scaled("x"),
    "frames of more blocks": sizes(5, 5, 5, 5),
}
LATE: dict[str, Change] = {  # told by digests, or where a block is restored
    "a scale of nothing": scaled("0x0p0"),
    "swapped entries": swapped,
    "nothing predicted": recipe(predicted=None),
    "frames of 4 GB": sizes((1 << 32) - 1),
    "frames of nothing": sizes(0),
}
MANIFESTS: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "cut off"),
    "a list": ("[]", "not a JSON object"),
    "a key twice": ('{"tool": "surgery", "tool": "surgery"}', "comes twice"),
    "100,000 objects in each other": ('{"a":' * 100_000, "nested too deeply"),
    "two sparse gigabytes": (sparse(2_000_000_000, b"{"), "too large to be read whole|more than 4194304 bytes"),
    "another tool's": ({"tool": "\x1b[2J"}, "a manifest of format 1 by|has no key"),
    "a format to come": ({"format": 10**400}, "not one that surgery writes|a manifest of format"),
    "history that is a text": ({"history": "x"}, "not one that surgery writes"),
    "history of a merge that is none": (
        {"history": [{"surgery": "merge", "adapters": [{}]}]},
        "step 1 has another `adapters`",
    ),
    "sizes beyond all": ({"files": {"a": 1e400}}, "not one that surgery writes"),
    "a recipe that is a list": ({"recipe": [5]}, "not one that surgery writes|recipe"),
}


def manifest(change: Any) -> Callable[[Path], None]:
    """`x`: the merge, with another manifest, or with something else in it."""

    def make(place: Path) -> None:
        made_of("merged", {})(place)
        path, content = place / "x" / MANIFEST, change
        if isinstance(change, dict):
            content = json.dumps({**json.loads(path.read_bytes()), **change}).replace("Infinity", "1e400")
        put_file(path, content)

    return make


def rows() -> Iterator[Row]:
    """Each in a merge that can be undone."""
    unmerge = ("unmerge x -o w/o",)
    for name, change in IN_THE_BASE.items():
        says = "the undo record is damaged"
        yield Row(f"undo record: {name}", changed(base_record, change), says, unmerge, "base.undo", OF_CHECKPOINTS)
    for name, change in IN_A_SHARD.items():
        make = changed(shard_record, change)
        yield Row(f"undo record of a shard: {name}", make, says, unmerge, ".undo", OF_CHECKPOINTS)
    for name, change in LATE.items():
        says = "what is restored is not what was|was changed|the undo record is damaged"
        yield Row(f"undo record of a shard: {name}", changed(shard_record, change), says, unmerge, "weight", stage=True)
    for name, (content, says) in MANIFESTS.items():
        words = ("inspect x", "reshard x -o w/o", "run x -o w/o")
        yield Row(f"manifest: {name}", manifest(content), says, words, "manifest.json", OF_CHECKPOINTS)
