"""Writing a shard's undo record: frames come in any order from several workers, the file has them in one.

While the shard is made, frames are appended to a part of their own. `finish` puts them in order behind a header that
says how long they are, makes the file durable and gives it its name: before the shard gets its own, so that a
finished shard has its record.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..evaluation.corrections import DIGEST, block_of, blocks_of, difference, digest
from ..evaluation.evaluate import blocks, into
from ..files.opening import shut
from ..files.safetensors import encode_header, in_file_order
from ..lazy.dtypes import DTYPES, Dtype
from ..planning.record import sealed
from .stage import write_at
from .writing_inside import part_of

if TYPE_CHECKING:
    from ..evaluation.workspace import Workspace
    from ..lazy.tensor import Shape
    from ..planning.record import Kept, Sidecar
    from ..planning.steps import ShardPlan
    from .writing_inside import Inside

_PIECE = 1 << 20


class SidecarFile:
    """The record of one shard, at work in a stage."""

    def __init__(self, shard: ShardPlan, inside: Inside) -> None:
        assert shard.sidecar
        self.plan: Sidecar = shard.sidecar
        self.inside, self.frames, self.made = inside, part_of(shard.name, "frames"), part_of(shard.name, "record")
        self.kept = {k.number: k for k in (*shard.lone, *(s.kept for s in shard.slots if s.kept))}
        self._frames: dict[tuple[int, int], tuple[int, int, bytes]] = {}  # (number, block) -> offset, bytes, digest
        self._end, self._lock = 0, threading.Lock()
        self._fd = inside.create(self.frames)

    def record(self, kept: Kept, start: int, stop: int, work: Workspace) -> None:
        """Record elements [start, stop), whole blocks, of the base's tensor; what predicts them is written by now."""
        bits, whole = kept.original.dtype.bits, block_of(kept.original.shape)
        for low in range(start, stop, whole):
            high = min(low + whole, stop)
            original = work.buffer("original", (high - low) * bits // 8)
            into(kept.original, low, high, original, work)
            frame = b""
            if kept.predicted is not None:
                predicted = work.buffer("block", len(original))
                into(kept.predicted, low, high, predicted, work)
                frame = difference(original, predicted, bits)
            known = digest(original)
            with self._lock:
                at, self._end = self._end, self._end + len(frame)
                self._frames[kept.number, low // whole] = at, len(frame), known
            write_at(self._fd, memoryview(frame), at)

    def finish(self, work: Workspace) -> None:
        """Write the file under its name, durable."""
        parts = self._parts(work)
        shapes = {name: (dtype, shape) for name, (dtype, shape, _) in parts.items()}
        with open(self.inside.create(self.made), "wb") as stream:
            stream.write(encode_header(shapes, sealed(self.plan.recipe)))
            for name in in_file_order(shapes):
                stream.writelines(parts[name][2])
            stream.flush()
            os.fsync(stream.fileno())
        self.inside.rename(self.made, self.plan.name)
        self.inside.remove(self.frames)

    def _parts(self, work: Workspace) -> dict[str, tuple[Dtype, Shape, Iterator[bytes | memoryview]]]:
        """The tensors of the file, each with its bytes."""
        mine: dict[int, list[tuple[int, int, bytes]]] = {number: [] for number in self.kept}
        for (number, _), frame in sorted(self._frames.items()):
            mine[number].append(frame)
        parts: dict[str, tuple[Dtype, Shape, Iterator[bytes | memoryview]]] = {}
        for n, found in mine.items():
            assert len(found) == blocks_of(self.kept[n].original.shape)
            parts[f"{n}.frames"] = DTYPES["U8"], (sum(size for _, size, _ in found),), self._copied(found)
            parts[f"{n}.sizes"] = DTYPES["U32"], (len(found),), (size.to_bytes(4, "little") for _, size, _ in found)
            parts[f"{n}.digests"] = DTYPES["U8"], (len(found), DIGEST), (kept for _, _, kept in found)
        for name, tensor in self.plan.fixed.items():
            parts[name] = tensor.dtype, tensor.shape, (data for _, data in blocks(tensor, 0, tensor.size, work))
        return parts

    def close(self) -> None:
        """Close the file, once."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            shut(fd)

    def _copied(self, found: list[tuple[int, int, bytes]]) -> Iterator[bytes]:
        for at, size, _ in found:
            for done in range(0, size, _PIECE):
                yield os.pread(self._fd, min(_PIECE, size - done), at + done)
