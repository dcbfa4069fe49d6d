"""The crew of a run: workers that fill shards, a thread that makes the filled ones durable, and the caller, who
delivers them.

Per shard: header, truncate to the final size, fill at known offsets by several workers in any order, fsync, re-open
with our own parser, compare with the plan, rename. With a record, that is durable before the shard gets its name.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

from ..errors import FormatError
from ..evaluation.corrections import block_of
from ..evaluation.evaluate import blocks, blocks_together
from ..evaluation.loading import loaded
from ..evaluation.losses import Loss
from ..evaluation.read import Reader
from ..evaluation.tiles import ROWS
from ..evaluation.workspace import Workspace
from ..files.opening import shut
from ..files.safetensors import read_header
from ..lazy.tensor import Decoded, File, Restored, Rowwise, Sum, Tensor
from ..planning.steps import Copy, Fill, Keep, Part, ShardPlan
from ..planning.together import Together, together
from .proving import prove_record
from .reflinks import Sharing
from .sidecar import SidecarFile
from .stage import write_at
from .writing_inside import Inside, part_of

if TYPE_CHECKING:
    from ..hub.content import PushReport

COPY_CHUNK = 64 << 20  # bytes of one kernel copy: a unit of work and of progress
FILL_CHUNK = 16 << 20  # bytes of one evaluation
OPEN = 32  # shards begun and not yet durable: each holds a file open or two, of some hundred that a process may
# Where the kernel cannot copy, or does not tell which side failed (EIO): the read/write loop can, and does.
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO)


@dataclass(frozen=True, slots=True)
class Step:
    """What the executor has just done; `nbytes` were written by it, or sent. `name` is the shard, file or folder."""

    kind: Literal[
        "resumed",
        "linked",
        "shared",
        "begun",
        "filled",
        "recorded",
        "synced",
        "finished",
        "sent",
        "file",
        "staged",
        "published",
    ]  # fmt: skip
    name: str
    nbytes: int = 0
    tensor: str = ""


class Delivery(Protocol):
    """A destination elsewhere: what is finished goes there at once and leaves the disk, and `publish` makes it
    visible.
    """

    @property
    def place(self) -> str:
        """The local path beside which the stage is, as it is beside a local destination; nothing is ever there
        itself.
        """

    @property
    def room(self) -> int:
        """How many shards may be on the disk, finished or begun."""

    def begin(self, stage: Inside) -> None:
        """The stage is there, and locked; it may hold what a broken run left."""

    def has(self, name: str) -> bool:
        """Whether a shard or file has been delivered, by this run or a broken one."""

    def deliver(self, names: Sequence[str]) -> None:
        """These finished files of the stage are where they belong, together, or in the stage still. Called in the
        caller's thread.
        """

    def publish(self) -> PushReport:
        """All of it is visible, and the stage gone."""


class _Shard:
    """A shard at work: its file, the parts that nobody has taken yet, and how many are being filled."""

    def __init__(self, shard: ShardPlan, inside: Inside, *, scratch: bool) -> None:
        self.plan, self.inside, self.scratch = shard, inside, scratch
        self.part = part_of(shard.name, "scratch" if scratch else "made")
        self.sidecar: SidecarFile | None = None
        first, rest = ([], shard.steps()) if loaded() else (_copies(shard), _computed(shard))
        self.copies = (part for step in first for part in _cut(step))
        self.rest = (part for step in together(rest) for part in _cut(step))
        self.copy = next(self.copies, None)  # the next one
        self.pending, self.issued, self.overflowed = 0, False, False
        self.fd = inside.reopen(self.part) if scratch else inside.create(self.part)

    def take(self) -> Part | Together | None:
        """The next part: copies come first, which need nothing that is being loaded. None: all are taken."""
        if part := self.copy:
            self.copy = next(self.copies, None)
            return part
        rest = next(self.rest, None)
        self.issued = rest is None
        return rest

    def begin(self) -> None:
        """Header and size: all else is zero. A scratch file keeps what is in it."""
        write_at(self.fd, memoryview(self.plan.header), 0)
        os.truncate(self.fd, self.plan.nbytes)
        if self.plan.sidecar:
            self.sidecar = SidecarFile(self.plan, self.inside)

    def close(self) -> None:
        """Close the file, once."""
        if self.sidecar:
            self.sidecar.close()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            shut(fd)


class Crew:
    """Workers that fill shards, and a thread that makes the filled ones durable while they go on.

    Each worker has a shard of its own as long as there are enough: the kernel lets one writer at a time into a file.
    No more shards are begun than there is room for: `OPEN` files. A `scratch` file is no output: it keeps the name of
    an unfinished part. With a `delivery`, finished shards leave the folder in the caller's thread, where Ctrl-C reaches
    an upload, and make room when they have left.
    """

    def __init__(
        self,
        shards: Sequence[ShardPlan],
        inside: Inside,
        space: Callable[[], Workspace],
        emit: Callable[[Step], None],
        *,
        scratch: bool,
        delivery: Delivery | None = None,
        check_all: bool = False,
        sharing: Sharing | None = None,
        ready: Callable[[], object] = lambda: None,
    ) -> None:
        self.ready = ready  # returns when what is computed can be
        self.check_all = check_all  # of a record, instead of a block of each tensor
        self.sharing = sharing or Sharing()
        self.inside, self.space, self.emit, self.scratch, self.delivery = inside, space, emit, scratch, delivery
        self.waiting = deque(shards)
        self.room = min(OPEN, delivery.room) if delivery else OPEN
        self.opened: list[_Shard] = []
        self.filled: SimpleQueue[_Shard | None] = SimpleQueue()
        self.finished: SimpleQueue[_Shard | None] = SimpleQueue()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.changed = threading.Condition(self.lock)
        self.errors: list[BaseException] = []
        self.losses: dict[str, Loss] = {}

    def run(self, workers: int) -> dict[str, Loss]:
        """Fill all shards. The first error stops all workers and is raised; when this returns or raises, all is at
        rest.

        What rounding did, by tensor, is returned. A shard with weights that became infinite is not finished: a rerun
        makes it anew.
        """
        running: list[threading.Event] = []
        self.working = workers
        named = self._start(self._name, "sync")
        # Not `join`: before Python 3.13 a join that Ctrl-C interrupts takes a thread that still writes for one that
        # ended.
        try:
            for i in range(workers):
                running.append(self._start(self._work, str(i)))
            while (shard := self.finished.get()) and not self.stop.is_set():
                self._deliver(shard)
            for ended in running:
                ended.wait()
            named.wait()
        finally:
            self._halt()
            _await(running)
            self.filled.put(None)
            _await([named])
            for shard in self.opened:
                shard.close()
        if self.errors:
            raise self.errors[0]
        return self.losses

    def _start(self, task: Callable[[], None], title: str) -> threading.Event:
        """Run `task` in a thread; the event says when it has ended. Its error is handed to the caller's thread."""
        ended = threading.Event()

        def guarded() -> None:
            try:
                task()
            except BaseException as error:
                self.errors.append(error)
                self._halt()
            finally:
                ended.set()

        threading.Thread(target=guarded, name=f"surgery-{title}", daemon=True).start()
        return ended

    def _halt(self) -> None:
        """No further part is taken, and nobody waits for room."""
        self.stop.set()
        with self.changed:
            self.changed.notify_all()

    def _work(self) -> None:
        try:
            self._fill_shards()
        finally:
            with self.lock:
                self.working -= 1
                last = not self.working
            if last:
                self.filled.put(None)

    def _fill_shards(self) -> None:
        space, shard = self.space(), None
        space.reader.stop = self.stop
        try:
            while item := self._take(shard):
                shard, part = item
                if part is not None:
                    if not isinstance(part, Copy):
                        self.ready()
                    for to, nbytes in _fill(shard, part, space, self.sharing):
                        name = _tensor_at(shard.plan, to)
                        self._count(shard, name, space.take_loss())
                        self.emit(Step("filled", shard.plan.name, nbytes, name))
                with self.lock:
                    shard.pending -= 1
                    done = shard.issued and not shard.pending
                if done and shard.overflowed and self.delivery:
                    self._halt()  # it never leaves, so that there will be no room for others
                elif done and shard.overflowed:
                    shard.close()
                    self._closed(shard)
                elif done and not self.scratch:
                    self.filled.put(shard)
        finally:
            space.close()

    def _count(self, shard: _Shard, name: str, loss: Loss) -> None:
        if loss != Loss():
            with self.lock:
                self.losses.setdefault(name, Loss()).__iadd__(loss)
                shard.overflowed |= bool(loss.overflowed)

    def _take(self, mine: _Shard | None) -> tuple[_Shard, Part | Together | None] | None:
        """The next part of a worker's own shard, of a new one, or at last of another's; no part: the shard is all
        taken.
        """
        with self.changed:
            while (shard := self._next(mine)) is None and self.waiting and not self.stop.is_set():
                self.changed.wait()  # until a delivery makes room
            if shard is None:
                return None
            part = shard.take()
            shard.pending += 1
            return shard, part

    def _next(self, mine: _Shard | None) -> _Shard | None:
        """The shard to go on with: one's own, a new one, or, when all are begun that may be, another's of which
        parts are left.
        """
        if self.stop.is_set():
            return None
        if mine and not mine.issued and (mine.copy or loaded()):
            return mine
        if self.waiting and self.room:
            self.room -= 1
            return self._begin(self.waiting.popleft())
        left = [shard for shard in self.opened if not shard.issued]
        return next((shard for shard in left if shard.copy), left[0] if left else None)

    def _begin(self, plan: ShardPlan) -> _Shard:
        shard = _Shard(plan, self.inside, scratch=self.scratch)
        self.opened.append(shard)
        shard.begin()
        self.emit(Step("begun", plan.name, len(plan.header)))
        return shard

    def _name(self) -> None:
        try:
            self._finish_shards()
        finally:
            self.finished.put(None)  # whatever failed: the caller waits for it

    def _finish_shards(self) -> None:
        space = self.space()
        try:
            while shard := self.filled.get():
                _finish(shard, self.emit, space, check_all=self.check_all)
                self._closed(shard)
                if self.delivery:
                    self.finished.put(shard)
        finally:
            space.close()

    def _closed(self, shard: _Shard) -> None:
        """A shard is at rest, and its file closed."""
        with self.lock:
            self.opened.remove(shard)
        if not self.delivery:
            self._make_room()

    def _make_room(self) -> None:
        with self.changed:
            self.room += 1
            self.changed.notify_all()

    def _deliver(self, shard: _Shard) -> None:
        assert self.delivery
        self.delivery.deliver(files_of(shard.plan))
        self.emit(Step("sent", shard.plan.name, shard.plan.nbytes))
        self._make_room()


def _await(events: Sequence[threading.Event]) -> None:
    """All have come. Ctrl-C meanwhile, as by whoever presses it twice, is raised then: nobody is left at work."""
    pressed: KeyboardInterrupt | None = None
    for event in events:
        while not event.is_set():
            try:
                event.wait()
            except KeyboardInterrupt as error:
                pressed = error
    if pressed:
        raise pressed


def files_of(shard: ShardPlan) -> list[str]:
    """The files that a finished shard is: its record, and itself."""
    return [*([shard.sidecar.name] if shard.sidecar else []), shard.name]


def _copies(shard: ShardPlan) -> Iterator[Part]:
    return (step for step in shard.steps() if isinstance(step, Copy))


def _computed(shard: ShardPlan) -> Iterator[Part]:
    return (step for step in shard.steps() if not isinstance(step, Copy))


def _cut(step: Part | Together) -> Iterator[Part | Together]:
    """A step as parts of bounded size, so that workers share a large tensor."""
    match step:
        case Copy(file, first, to, nbytes):
            chunk = FILL_CHUNK if file.remote else COPY_CHUNK
            over = 0 if file.remote else to % chunk  # cut between blocks of the shard
            for start in range(to - over, to + nbytes, chunk):
                begin, stop = max(to, start), min(to + nbytes, start + chunk)
                yield Copy(file, first + begin - to, begin, stop - begin)
        case Fill(tensor, first, stop, to, kept):
            elements = _elements(
                kept.original if kept else tensor, blockwise=bool(kept) or isinstance(tensor, Restored)
            )
            for start in range(first, stop, elements):
                yield Fill(
                    tensor, start, min(start + elements, stop), to + (start - first) * tensor.dtype.bits // 8, kept
                )
        case Together():
            yield from step.cut(FILL_CHUNK)
        case Keep(kept, first, stop):
            elements = _elements(kept.original, blockwise=True)
            yield from (Keep(kept, start, min(start + elements, stop)) for start in range(first, stop, elements))


def _elements(tensor: Tensor, *, blockwise: bool) -> int:
    """Elements of a part: whole tiles of a sum, whole blocks of a record."""
    unit = (
        block_of(tensor.shape)
        if blockwise
        else 8 * (ROWS * tensor.shape[-1] if isinstance(tensor, Sum | Decoded | Rowwise) and tensor.shape else 1)
    )
    return max(1, FILL_CHUNK * 8 // tensor.dtype.bits // unit) * unit


def _fill(shard: _Shard, part: Part | Together, space: Workspace, sharing: Sharing) -> list[tuple[int, int]]:
    """Write one part; returns where its tensors' bytes begin, and how many they are."""
    match part:
        case Copy(file, at, to, nbytes):
            copy_range(space.reader, file, at, shard.fd, to, nbytes, sharing)
            return [(to, nbytes)]
        case Fill(tensor, start, stop, to, kept):
            for offset, data in blocks(tensor, start, stop, space):
                write_at(shard.fd, data, to + offset)
            if kept and shard.sidecar:
                shard.sidecar.record(kept, start, stop, space)
            return [(to, (stop - start) * tensor.dtype.bits // 8)]
        case Together():
            return _fill_together(shard, part, space)
        case Keep(kept, start, stop):
            if shard.sidecar:
                shard.sidecar.record(kept, start, stop, space)
            return []


def _fill_together(shard: _Shard, part: Together, space: Workspace) -> list[tuple[int, int]]:
    fills = [*part.each()]
    wanted = [(fill.tensor, fill.start, fill.stop) for fill in fills]
    for which, offset, data in blocks_together(wanted, part.stop - part.start, space):
        write_at(shard.fd, data, fills[which].to + offset)
    return [(fill.to, (fill.stop - fill.start) * fill.tensor.dtype.bits // 8) for fill in fills]


def copy_range(reader: Reader, file: File, at: int, fd: int, to: int, nbytes: int, sharing: Sharing) -> None:
    """Copy bytes between files: shared where they can be, in the kernel where it can, else through a buffer, as from
    the Hub.
    """
    source = reader.fd(file)
    for done, stop in sharing.left(source, file, at, fd, to, nbytes):
        if source is not None and sharing.in_kernel(source):
            done += _copied(source, at + done, fd, to + done, stop - done)
        for part in reader.stream(file, at + done, stop - done):
            write_at(fd, part, to + done)
            done += len(part)


def _copied(source: int, at: int, fd: int, to: int, nbytes: int) -> int:
    """How many bytes the kernel copied."""
    done = 0
    while done < nbytes:
        try:
            got = os.copy_file_range(source, fd, nbytes - done, at + done, to + done)
        except OSError as error:
            if error.errno not in NO_KERNEL_COPY:
                raise
            break
        if got == 0:
            break
        done += got
    return done


def _tensor_at(shard: ShardPlan, to: int) -> str:
    """The name of the tensor that holds byte `to` of the shard."""
    low, high = 0, len(shard.slots)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shard.slots[middle].to <= to else (low, middle)
    return shard.slots[low].name if shard.slots else ""


def _finish(shard: _Shard, emit: Callable[[Step], None], space: Workspace, *, check_all: bool) -> None:
    """Make a filled shard durable, prove that it is what was planned, and give it its name; its record first."""
    try:
        os.fsync(shard.fd)
        if shard.sidecar:
            shard.sidecar.finish(space)
            emit(Step("recorded", shard.plan.name))
    finally:
        shard.close()
    emit(Step("synced", shard.plan.name))
    compare(shard.inside.at(shard.part), shard.plan)
    if shard.sidecar:
        prove_record(shard.plan, shard.inside.path, shard.inside.at(shard.part), space, every=check_all)
    shard.inside.rename(shard.part, shard.plan.name)
    emit(Step("finished", shard.plan.name))


def compare(path: str, shard: ShardPlan) -> None:
    """Re-read a written shard with our own parser and compare it with the plan."""
    read_header(path)
    with open(path, "rb") as stream:
        same = stream.read(len(shard.header)) == shard.header
    if not same or os.path.getsize(path) != shard.nbytes:
        raise FormatError(
            "a written shard is not what was planned",
            where=[path],
            help="a fault of the disk, or of surgery: report it",
        )
