"""`*.safetensors.index.json`: which shard holds which tensor.

Invariants of a parsed index: names and shards are strings, no name comes twice, and a shard is a path inside the
folder, without `.` and double slashes.
Written as transformers writes it: two spaces, sorted keys, a newline at the end.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from ..errors import FormatError
from .paths import CONTROL, NO_TEXT, TOO_DEEP, TOO_LONG, fault_of
from .strict import MEND, parse_object


@dataclass(frozen=True, slots=True)
class Index:
    """A parsed index: `metadata` as it stood there, `weight_map` from tensor to shard, `raw` the file's content."""

    metadata: Mapping[str, Any]
    weight_map: Mapping[str, str]
    raw: bytes = field(default=b"", compare=False, repr=False)


def parse_index(raw: bytes, where: str) -> Index:
    """The index in `raw`, the content of the file called `where`."""
    content = parse_object(raw, lambda what: FormatError(what, where=[where], help=MEND))
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(s, str) and s for s in weight_map.values()):
        raise FormatError("`weight_map` must map tensor names to shard files", where=[where], help=MEND)
    metadata = content.get("metadata")
    if not isinstance(metadata, dict | None):
        raise FormatError("`metadata` must be an object", where=[where], help=MEND)
    paths = {shard: PurePosixPath(shard) for shard in set(weight_map.values())}
    for shard, path in paths.items():
        if (fault := fault_of(str(path))) or ":" in shard:
            outside = fault not in (CONTROL, NO_TEXT, TOO_LONG, TOO_DEEP)
            raise FormatError(
                f"the index {'points outside the checkpoint' if outside else f'names no file that could be ({fault})'}:"
                f" {shard}",
                where=[f"{where}: {next(n for n, s in weight_map.items() if s == shard)}"],
                help="a shard is named relative to the index, inside its folder",
            )
    return Index(metadata or {}, {name: str(paths[shard]) for name, shard in weight_map.items()}, raw)


def encode_index(metadata: Mapping[str, Any], weight_map: Mapping[str, str]) -> bytes:
    """The bytes that transformers writes for this index."""
    around = json.dumps({"metadata": dict(metadata), "weight_map": {}}, indent=2, sort_keys=True).encode()
    begin, _, end = around.rpartition(b"{}")
    held = bytearray()  # of a million names, so that they are written one by one
    for name in sorted(weight_map):
        held += f"{',' if held else ''}\n    {json.dumps(name)}: {json.dumps(weight_map[name])}".encode()
    return b"".join((begin, b"{", held, b"\n  " if held else b"", b"}", end, b"\n"))
