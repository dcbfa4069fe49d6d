"""What fills a shard: copies by the kernel, and evaluated elements, at known offsets of its file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..evaluation.scratch import SCRATCH
from ..lazy.runs import lower, to_bytes
from ..lazy.tensor import File, Measured, Restored, Stored, Tensor, Zeros, is_computed, stored
from .record import Kept, Sidecar

COPY_RUN = 16 << 10  # bytes from which a run is copied by the kernel instead of gathered through a buffer
FETCH_RUN = 1 << 20  # the same for a file on the Hub, where each copy is a request


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor and the byte of the shard file from which it is written."""

    name: str
    tensor: Tensor
    to: int
    kept: Kept | None = None  # what is recorded along, element for element


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes [at, at + nbytes) of `file` -> bytes from `to` on."""

    file: File
    at: int
    to: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Fill:
    """Elements [start, stop) of `tensor`, evaluated -> bytes from `to` on."""

    tensor: Tensor
    start: int
    stop: int
    to: int
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Keep:
    """Elements [start, stop) of a base tensor that nothing written resembles -> the record."""

    kept: Kept
    start: int
    stop: int


Part = Copy | Fill | Keep


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """A shard file: its header, and its tensors in the order of their offsets.

    With a `sidecar` it is recorded what the base was: by the slots, and of the base tensors `lone`, which no slot
    resembles.
    """

    name: str
    header: bytes
    slots: tuple[Slot, ...]
    nbytes: int
    sidecar: Sidecar | None = None
    lone: tuple[Kept, ...] = ()
    at: str = ""  # what the names of its tensors begin with, and do not in the file

    def steps(self) -> Iterator[Part]:
        """What fills the shard after its header, and its record; copies that continue each other are one."""
        yield from (Keep(kept, 0, kept.original.size) for kept in self.lone if kept.original.size)
        last: Copy | None = None
        for slot in self.slots:
            for step in steps(slot.tensor, slot.to, slot.kept):
                match last, step:
                    case Copy(file, at, to, n), Copy(same, at2, to2, m) if (
                        same is file and at + n == at2 and to + n == to2
                    ):
                        last = Copy(file, at, to, n + m)
                    case Copy(), _:
                        yield last
                        last = step if isinstance(step, Copy) else None
                        if last is None:
                            yield step
                    case _, Copy():
                        last = step
                    case _:
                        yield step
        if last:
            yield last

    def apart(self) -> list[ShardPlan]:
        """The same file in parts, of which each may read those before it: slot by slot, but what is measured of files
        alone, one after another, is one part, which several workers share.
        """
        parts: list[list[Slot]] = []
        for slot in self.slots:
            if parts and _is_measured(slot) and _is_measured(parts[-1][0]):
                parts[-1].append(slot)
            else:
                parts.append([slot])
        return [replace(self, slots=tuple(part)) for part in parts]


def _is_measured(slot: Slot) -> bool:
    return isinstance(slot.tensor, Measured) and not any(leaf.file.path == SCRATCH for leaf in stored(slot.tensor))


def steps(tensor: Tensor, to: int, kept: Kept | None = None) -> Iterator[Copy | Fill]:
    """What writes `tensor` from byte `to` on: kernel copies where all runs are long, one evaluation otherwise.

    Zeros take no step: a new file is zero. What is `kept` along has to pass through our hands.
    """
    if kept:
        if tensor.nbytes:
            yield Fill(tensor, 0, tensor.size, to, kept)
        return
    if isinstance(tensor, Stored):
        if tensor.nbytes:
            yield Copy(tensor.file, tensor.offset, to, tensor.nbytes)
        return
    if isinstance(tensor, Zeros):
        return
    pieces = [] if is_computed(tensor) or isinstance(tensor, Restored) else [to_bytes(p) for p in lower(tensor)]
    remote = any(leaf.file.remote for leaf in stored(tensor))
    if not pieces or min(p.run for p in pieces) < (FETCH_RUN if remote else COPY_RUN):
        if tensor.nbytes:
            yield Fill(tensor, 0, tensor.size, to)
        return
    copies = [
        Copy(p.leaf.file, p.leaf.offset + at, to + there, p.run)
        for p in pieces
        if isinstance(p.leaf, Stored)
        for at, there in p.runs()
    ]
    yield from sorted(copies, key=lambda c: c.to)
