"""What an output can share with its inputs where a file system lets files share blocks, and where a shard's data begins
so that it can.

A block of a file is a block of another only if both begin at a multiple of its size. So a run of bytes is shared but
for its edges where its offsets in the two files differ by a multiple of `BLOCK`, and not at all where they do not. The
format lets a header end in spaces, so that the begin of the data can be chosen.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

from ..errors import PlanError, SurgeryError
from ..evaluation.scratch import SCRATCH
from ..evaluation.spool import is_spooled
from ..files.safetensors import padded_header
from ..lazy.runs import lower, to_bytes
from ..lazy.tensor import File, Stored, is_computed
from .sharding import parse_size
from .steps import COPY_RUN, Copy, Fill, ShardPlan

BLOCK = 4096  # bytes: of Btrfs and XFS, as they are made
WORD = 8  # bytes: where data begins in each file that safetensors writes
MOST = 16 << 20  # bytes of spaces: the format allows a header of 100 MB


@dataclass(frozen=True, slots=True)
class Shareable:
    """Bytes that keep their values: those of whole `shared` blocks, those at the `edges` of such runs or in runs that
    fill no block, and those that lie `apart`: at other offsets within a block, in short runs, or on the Hub.
    """

    shared: int = 0
    edges: int = 0
    apart: int = 0

    def __add__(self, other: Shareable) -> Shareable:
        return Shareable(self.shared + other.shared, self.edges + other.edges, self.apart + other.apart)


def inner(at: int, to: int, nbytes: int, block: int) -> tuple[int, int]:
    """Where the whole blocks of a run begin and stop, counted from its begin: inner(10, 4106, 9000, 4096) is
    (4086, 8182); two equal numbers where there are none.
    """
    if (at - to) % block:
        return 0, 0
    begin = -to % block
    stop = begin + max(0, nbytes - begin) // block * block
    return (begin, stop) if stop > begin else (0, 0)


def is_made(file: File) -> bool:
    """Whether the file holds what was computed: by the run, or by a surgery before it."""
    return file.path == SCRATCH or is_spooled(file)


def shareable(shards: Iterable[ShardPlan], block: int = BLOCK) -> Shareable:
    """What these shards can share with the inputs. Reads no file."""
    return sum((_of_shard(shard, block) for shard in shards), Shareable())


def _of_shard(shard: ShardPlan, block: int) -> Shareable:
    if whole(shard):
        return Shareable(shared=shard.nbytes)
    return sum((_of_step(step, block) for step in shard.steps() if isinstance(step, Copy | Fill)), Shareable())


def _of_step(step: Copy | Fill, block: int) -> Shareable:
    if isinstance(step, Fill):
        moved = 0 if is_computed(step.tensor) else (step.stop - step.start) * step.tensor.dtype.bits // 8
        return Shareable(apart=moved)
    if is_made(step.file):
        return Shareable()
    if step.file.remote or (step.at - step.to) % block:
        return Shareable(edges=step.nbytes) if step.nbytes < block else Shareable(apart=step.nbytes)
    begin, stop = inner(step.at, step.to, step.nbytes, block)
    return Shareable(stop - begin, step.nbytes - (stop - begin))


def whole(shard: ShardPlan) -> File | None:
    """The input that the shard is, byte for byte, by what was read of that when it was opened."""
    match list(islice(shard.steps(), 2)):
        case [Copy(file, at, to, nbytes)] if (
            not (file.remote or shard.sidecar)
            and at == to == len(shard.header)
            and to + nbytes == file.size == shard.nbytes
            and file.digest == hashlib.sha256(shard.header[8:]).hexdigest()
        ):
            return file
    return None


def parse_align(align: int | str | None) -> int | None:
    """Bytes: `auto` is 4096, the block of nearly all file systems; else a power of two, such as 65536 or 64KiB."""
    if align is None or align == "":
        return None
    if align == "auto":
        return BLOCK
    text = str(align)
    size = int(text) if text.isascii() and text.isdigit() else parse_size(text)
    if size & (size - 1) or not WORD <= size <= MOST:
        raise SurgeryError(
            f"data cannot be aligned to {size} bytes",
            help=f"pass --align auto, or a power of two from {WORD} to {MOST}, such as 65536",
        )
    return size


def aligned(shard: ShardPlan, align: int | None) -> ShardPlan:
    """The shard, its data so far behind its header that most of the bytes that keep their values lie at the offsets
    within `align` bytes that they have in their inputs; where there are none, that the data begins with a block.
    """
    if align is None:
        return shard
    votes = Counter[int]()
    for at, to, nbytes in _runs(shard):
        votes[(at - to) % align] += nbytes
    possible = {shift: n for shift, n in votes.items() if shift % WORD == 0}
    shift = max(possible, key=lambda s: (possible[s], -s)) if possible else -len(shard.header) % align
    if not shift:
        return shard
    slots = tuple(replace(slot, to=slot.to + shift) for slot in shard.slots)
    try:
        header = padded_header(shard.header, shift)
    except SurgeryError as error:
        raise PlanError(error.what, where=[shard.name], help="leave --align away, or pass a smaller one") from error
    return replace(shard, header=header, slots=slots, nbytes=shard.nbytes + shift)


def _runs(shard: ShardPlan) -> Iterator[tuple[int, int, int]]:
    """(byte of the input, byte of the shard, bytes) of each long run that is copied; the same for inputs on the Hub, so
    that where the data begins depends on no place.
    """
    for slot in shard.slots:
        pieces = () if is_computed(slot.tensor) else map(to_bytes, lower(slot.tensor))
        for piece in pieces:
            long = piece.run >= min(COPY_RUN, slot.tensor.nbytes)
            if long and isinstance(piece.leaf, Stored) and not is_made(piece.leaf.file):
                yield from ((piece.leaf.offset + at, slot.to + to, piece.run) for at, to in piece.runs())
