"""Which tensor goes into which shard.

Tensors fill shards in natural order of their names (layer 2 before 10), so that a layer stays together, and the shards
of a size depend on the tensors alone, not on how they were sharded before. Sizes: GB is 10^9 bytes, GiB is 2^30.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from ..checkpoint import Checkpoint
from ..errors import SurgeryError
from ..files.safetensors import MAX_HEADER, bytes_in_header, metadata_in_header
from ..hub.shards import split_into_shards
from ..names import natural
from ..quantization.kept_whole import held_in

_UNITS = (
    {"": 1, "B": 1}
    | {f"{u}B": 1000 ** (i + 1) for i, u in enumerate("KMGT")}
    | {f"{u}IB": 1024 ** (i + 1) for i, u in enumerate("KMGT")}
)
DEFAULT = "5GB"  # what the Hub's client takes where nothing is said
# Of an entry of a header, in bytes at most: a character such as \u0000, a number and its comma, all else.
CHARACTER, NUMBER, AROUND = 6, 21, 80
LEAST = 1_000_000  # bytes: nobody who leaves the unit away means less


def parse_size(text: int | str) -> int:
    """Bytes: `5GB` is 5 * 10^9, `5GiB` is 5 * 2^30, a plain number is bytes; as a text, from a megabyte on."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(text), re.ASCII)
    unit = _UNITS.get(found.group(2).upper()) if found else None
    size = int(Fraction(found.group(1)) * unit) if found and unit else 0
    if size <= 0:
        raise SurgeryError(
            f"`{text}` is not a size", help="write 5GB (5 * 10^9 bytes), 5GiB (5 * 2^30 bytes) or a number of bytes"
        )
    if isinstance(text, str) and size < LEAST and found and not found.group(2):
        number = found.group(1)
        raise SurgeryError(
            f"`{number}` has no unit, and would be {size} bytes",
            help=f"write {number}MB or {number}GB, or {number}B where bytes are meant",
        )
    return size


def in_order(checkpoint: Checkpoint) -> list[str]:
    """All tensor names in the order in which shards are filled."""
    return sorted(checkpoint.tensors, key=lambda n: (natural(n), n))


def assign(
    checkpoint: Checkpoint, max_shard_size: int | str | None = None, *, balanced: bool = False
) -> dict[str, str]:
    """Tensor -> shard file name. Without a size every tensor stays in the shard that it came from; what came from
    no shards, but from pieces in many files, gets some of the Hub's size.

    One shard is called `model.safetensors`. `balanced` takes as few shards, and makes the largest as small as the order
    allows; otherwise shards are filled by the Hub's greedy rule. A tensor above the size gets a shard of its own. Of a
    quantised checkpoint, codes are in one shard with what belongs to them. A shard of so many tensors that the format
    has no room for its header becomes several.
    """
    if max_shard_size is None and checkpoint.scattered:
        max_shard_size = DEFAULT
    if max_shard_size is None:
        if balanced:
            raise SurgeryError("a balanced layout needs a size", help="add --max-shard-size 5GB")
        kept = {name: checkpoint.weight_map[name] for name in in_order(checkpoint)}
        named = checkpoint.headers or checkpoint.parts  # shards that are written under their own names
        single = len(set(kept.values())) == 1 and not named
        return dict.fromkeys(kept, f"{checkpoint.stem}.safetensors") if single else kept
    if checkpoint.parts:
        return _by_component(checkpoint, max_shard_size, balanced=balanced)
    limit = parse_size(max_shard_size)
    units = _units(checkpoint, limit)
    sizes = {unit: sum(checkpoint.tensors[name].nbytes for name in names) for unit, names in units.items()}
    layout = split_into_shards(sizes, _even(sizes, limit) if balanced else limit, checkpoint.stem)
    roomy = with_room_for_headers(checkpoint, layout, units)
    return {name: roomy[unit] for unit, names in units.items() for name in names}


def _by_component(checkpoint: Checkpoint, max_shard_size: int | str, *, balanced: bool) -> dict[str, str]:
    """The same of a pipeline: each component in shards of its own."""
    found: dict[str, str] = {}
    for folder, part in checkpoint.parts.items():
        at = f"{folder}/"
        mine = {n.removeprefix(at): t for n, t in checkpoint.tensors.items() if n.startswith(at)}
        layout = assign(replace(part, tensors=mine), max_shard_size, balanced=balanced)
        found |= {f"{at}{name}": f"{at}{shard}" for name, shard in layout.items()}
    return found


def _units(checkpoint: Checkpoint, limit: int) -> dict[str, list[str]]:
    """The tensors that stay together, in the order in which shards are filled, by the first of them: codes and what
    belongs to them, where the limit allows; each other one is alone.
    """
    first, found = dict[str, str](), dict[str, list[str]]()
    for one in held_in(checkpoint).weights.values():
        parts = sorted((part for part in (*one.parts, *one.left) if part in checkpoint.tensors), key=natural)
        if sum(checkpoint.tensors[part].nbytes for part in parts) <= limit:
            first |= dict.fromkeys(parts, parts[0])
    for name in in_order(checkpoint):
        found.setdefault(first.get(name, name), []).append(name)
    return found


def with_room_for_headers(
    checkpoint: Checkpoint, layout: Mapping[str, str], units: Mapping[str, Sequence[str]]
) -> Mapping[str, str]:
    """The layout, unit -> shard; where a header would be above what the format allows, that shard is cut in order, and
    all are numbered anew.
    """
    members: dict[str, list[str]] = {}
    for unit, shard in layout.items():
        members.setdefault(shard, []).append(unit)
    said = {key: value for one in checkpoint.metadata.values() for key, value in (one or {}).items()}
    room = MAX_HEADER - metadata_in_header({"format": "pt", **said})
    held = [part for shard in sorted(members, key=natural) for part in _cut(checkpoint, members[shard], units, room)]
    if len(held) == len(members):
        return layout
    return {
        unit: f"{checkpoint.stem}-{number:05}-of-{len(held):05}.safetensors"
        for number, part in enumerate(held, 1)
        for unit in part
    }


def _cut(
    checkpoint: Checkpoint, members: Sequence[str], units: Mapping[str, Sequence[str]], room: int
) -> list[list[str]]:
    """A shard's units, cut wherever the header of those before and this one would take more than `room`."""
    tensors, names = checkpoint.tensors, [name for unit in members for name in units[unit]]
    numbers = sum(len(tensors[name].shape) + 2 for name in names)
    if sum(map(len, names)) * CHARACTER + len(names) * AROUND + numbers * NUMBER <= room:  # as nearly always
        return [list(members)]
    end = sum(tensors[name].nbytes for name in names)
    parts, taken = list[list[str]]([[]]), 0
    for unit in members:
        size = sum(bytes_in_header(name, tensors[name].dtype, tensors[name].shape, end) for name in units[unit])
        if parts[-1] and taken + size > room:
            parts.append([])
            taken = 0
        parts[-1].append(unit)
        taken += size
    return parts


def _even(sizes: Mapping[str, int], limit: int) -> int:
    """The smallest size of shard that needs no more shards than `limit` does."""

    def shards(size: int) -> int:
        return len(set(split_into_shards(sizes, size, "x").values()))

    fewest = shards(limit)
    low, high = max(1, max(sizes.values(), default=1)), limit
    if low >= limit:  # a tensor above the limit: what is left is what can be spread
        low = max((n for n in sizes.values() if n <= limit), default=limit)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if shards(middle) <= fewest else (middle + 1, high)
    return high
