"""The executor: a plan -> files. Boring on purpose.

Per shard: header, truncate to the final size, fill at known offsets by several workers in any order, fsync, re-open with
our own parser, compare with the plan, rename. Then the carried files, the index, the manifest; then the stage is
published by one rename. A shard under its final name is complete, which is the whole resume rule.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

from .checkpoint import Checkpoint
from .errors import FormatError, NoSpace, SurgeryError
from .evaluate import DEFAULT_MEMORY, LEAST_BUDGET, ROWS, SCRATCH, Workspace, blocks, exact
from .formats.manifest import MANIFEST
from .formats.peft import Adapter
from .formats.safetensors import read_header
from .hub.refs import has_scheme
from .links import Links, removed
from .losses import Erased, Loss, check_finite, erased_in, note_on
from .patch import block_of
from .plan import Copy, Fill, Keep, Part, Plan, ShardPlan, plan, written
from .read import PIECE, Reader
from .record import BASE
from .sharding import parse_size
from .sidecar import SidecarFile
from .stage import Stage, size_of, staged, sync
from .tensor import File, Restored, Sum, Tensor

if TYPE_CHECKING:
    from .hub.push import PushReport
    from .hub.stream import HubDestination

COPY_CHUNK = 64 << 20  # bytes of one kernel copy: a unit of work and of progress
FILL_CHUNK = 16 << 20  # bytes of one evaluation
BULKY = 10_000_000  # bytes of a carried file that leaves the disk as a shard does, where shards do
CONNECTIONS = 8  # workers where inputs are on the Hub: they wait more than they work
# Where the kernel cannot copy, or does not tell which side failed (EIO): the read/write loop can, and does.
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO)


@dataclass(frozen=True, slots=True)
class Step:
    """What the executor has just done; `nbytes` were written by it, or sent. `name` is the shard, file or folder."""

    kind: Literal["resumed", "linked", "begun", "filled", "recorded", "synced", "finished", "sent", "file", "staged", "published"]
    name: str
    nbytes: int = 0
    tensor: str = ""


@dataclass(frozen=True)
class Report:
    """What a run did. Sizes are bytes, `seconds` wall time."""

    output: str
    shards: int
    tensors: int
    copied: int
    computed: int
    dropped: int
    replaced: int
    added: int
    files: int
    nbytes: int
    resumed: int
    seconds: float
    history: tuple[object, ...]
    notes: tuple[str, ...] = field(default=())
    erased: tuple[Erased, ...] = ()  # where rounding leaves most of the changed weights as they were
    linked: int = 0  # bytes that lie in the output without having been written: hard links to inputs
    commit: PushReport | None = None  # of an output on the Hub


class Delivery(Protocol):
    """A destination elsewhere: what is finished goes there at once and leaves the disk, and `publish` makes it visible."""

    @property
    def place(self) -> str:
        """The local path beside which the stage is, as it is beside a local destination; nothing is ever there itself."""

    @property
    def room(self) -> int:
        """How many shards may be on the disk, finished or begun."""

    def begin(self, stage: str) -> None:
        """The stage is there, and locked; it may hold what a broken run left."""

    def has(self, name: str) -> bool:
        """Whether a shard or file has been delivered, by this run or a broken one."""

    def deliver(self, names: Sequence[str]) -> None:
        """These finished files of the stage are where they belong, together, or in the stage still. Called in the caller's thread."""

    def publish(self) -> PushReport:
        """All of it is visible, and the stage gone."""


def write(
    checkpoint: Checkpoint | Adapter,
    dest: str | os.PathLike[str] | HubDestination,
    max_shard_size: int | str | None = None,
    *,
    balanced: bool = False,
    drop_metadata: Sequence[str] = (),
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    link: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Plan and execute: afterwards `dest` holds the whole checkpoint or adapter, or, after an error, what it held before."""
    made = plan(checkpoint, max_shard_size, balanced=balanced, drop_metadata=drop_metadata)
    return execute(made, dest, memory=memory, workers=workers, overwrite=overwrite, link=link, on_step=on_step)


def execute(
    plan: Plan,
    dest: str | os.PathLike[str] | HubDestination,
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    link: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Carry out `plan` at `dest`: a folder, or a repository on the Hub, `hf://org/name[@branch]` or a HubDestination.

    `memory` (bytes, or "512MB") bounds the buffers of all `workers` together.
    Bytes do not depend on `workers` or `memory`. `on_step` is called after each step, from any worker, never by two at
    once. Raises DestinationError, NoSpace, SourceChanged, HubError; the finished shards stay staged, and a rerun resumes them.

    `link`: a shard or carried file that is an input as it stands, header included, becomes a hard link to it, where the file
    system can: then nothing may be written to either. Without it the output shares nothing with the inputs.
    """
    begun = time.monotonic()
    emit = _serial(on_step)
    count, budget = _share(plan, parse_size(memory), workers)
    inputs = [path for path in (*(i.path for i in plan.inputs), *(f.path for f in _sources(plan))) if not has_scheme(path)]
    place, delivery = _delivery(plan, dest, overwrite=overwrite)
    with staged(place, plan.identity, overwrite=overwrite, inputs=inputs) as stage:
        if delivery:
            delivery.begin(stage.path)
        todo, resumed = _resume(plan, stage, emit, delivery, link=link)
        links = Links(stage.path, lambda name, size: emit(Step("linked", name, size))) if link and not delivery else None
        todo = [shard for shard in todo if not (links and _linked(shard, stage, links))]
        _check_space(plan, stage, resumed + (links.nbytes if links else 0), delivery)
        notes = [*plan.notes]
        notes += [f"resumed: {resumed} bytes were there from a broken run of the same plan"] if resumed else []
        notes += [f"a stage of another plan, {size_of(s)} bytes: {s} (surgery clean removes it)" for s in stage.stale]
        losses = dict[str, Loss]()
        with ExitStack() as stack:
            if plan.arithmetic:
                stack.enter_context(exact())
            unfinished = {written(s.name): s.name for s in plan.shards if s.sidecar} | {SCRATCH: SCRATCH}
            space = partial(Workspace, budget, {named: os.path.join(stage.path, f"{name}.part") for named, name in unfinished.items()})
            if plan.scratch and todo:
                for slot in plan.scratch.slots:  # one by one: a scratch tensor may be made of those before it
                    made = _Crew([replace(plan.scratch, slots=(slot,))], stage.path, space, emit, scratch=True).run(count)
                    losses |= {name: loss for loss in made.values() if loss.erased or loss.overflowed for name in plan.users(slot)}
                check_finite(losses, plan.dtypes)
            losses |= _Crew(todo, stage.path, space, emit, scratch=False, delivery=delivery).run(count)
            check_finite(losses, plan.dtypes)
        erased = erased_in(losses)
        notes += note_on(erased, losses)
        _write_files(plan, stage, emit, delivery, links)
        notes = [*(links.notes() if links else []), *notes, *(_record_note(plan, stage) if not delivery else [])]
        _check_sources(plan)
        if not delivery:
            _remove_strays(plan, stage)
        emit(Step("staged", stage.path))
        commit = delivery.publish() if delivery else None
        if not delivery:
            stage.publish(overwrite=overwrite)
        emit(Step("published", stage.dest))
    return Report(
        output=commit.url if commit else stage.dest,
        shards=len(plan.shards),
        tensors=plan.tensors,
        copied=plan.tensors - len(plan.computed),
        computed=len(plan.computed),
        dropped=len(plan.dropped),
        replaced=len(plan.replaced),
        added=len(plan.added),
        files=len(plan.files),
        nbytes=plan.nbytes + plan.file_bytes,
        resumed=resumed,
        seconds=time.monotonic() - begun,
        history=plan.history,
        notes=tuple(dict.fromkeys([*notes, *(commit.notes if commit else ())])),
        erased=erased,
        linked=links.nbytes if links else 0,
        commit=commit,
    )


def _delivery(plan: Plan, dest: str | os.PathLike[str] | HubDestination, *, overwrite: bool) -> tuple[str, Delivery | None]:
    """The local path beside which the stage will be, and where finished shards go if they do not stay in it."""
    if isinstance(dest, str | os.PathLike) and not has_scheme(os.fspath(dest)):
        return os.fspath(dest), None
    from .hub.stream import deliver_to

    delivery = deliver_to(dest, plan, overwrite=overwrite)
    return delivery.place, delivery


def _serial(on_step: Callable[[Step], None] | None) -> Callable[[Step], None]:
    lock = threading.Lock()

    def emit(step: Step) -> None:
        if on_step:
            with lock:
                on_step(step)

    return emit


def _share(plan: Plan, memory: int, workers: int | None) -> tuple[int, int]:
    """(workers, bytes of buffers for each): fewer workers where the memory does not do for all."""
    least = LEAST_BUDGET if plan.arithmetic else 4 * PIECE
    if memory < least:
        raise SurgeryError(f"{memory} bytes of memory are too few", help=f"this plan needs --memory {-(-least // 10**6)}MB or more")
    remote = any(file.remote for file in _sources(plan))
    wanted = workers if workers is not None else CONNECTIONS if remote else min(4, len(os.sched_getaffinity(0)))
    if wanted < 1:
        raise SurgeryError(f"{wanted} workers can do nothing", help="pass --workers 1 or more")
    count = max(1, min(wanted, memory // least))
    return count, memory // count


def _sources(plan: Plan) -> list[File]:
    """Every file that is read."""
    return [*(f for i in plan.inputs for f in i.files), *(f for f in plan.files.values() if isinstance(f, File))]


def _check_sources(plan: Plan) -> None:
    """Nothing was written to the inputs while we read them; those on the Hub are of one commit. Raises SourceChanged."""
    reader = Reader()
    try:
        for file in _sources(plan):
            if not file.remote:
                reader.fd(file)
    finally:
        reader.close()


def _resume(
    plan: Plan, stage: Stage, emit: Callable[[Step], None], delivery: Delivery | None, *, link: bool
) -> tuple[list[ShardPlan], int]:
    """The shards that are still to be made, and the bytes of those that a broken run of this plan finished.

    What that run linked is made anew where this one is to share nothing with the inputs.
    """
    todo, resumed = [], 0
    for shard in plan.shards:
        path = os.path.join(stage.path, shard.name)
        sent = delivery is not None and delivery.has(shard.name)
        recorded = not shard.sidecar or os.path.isfile(os.path.join(stage.path, shard.sidecar.name))
        here = os.path.isfile(path) and recorded and _is_as_planned(path, shard)
        if sent or (here and (link or os.stat(path).st_nlink == 1)):
            if delivery and not sent:
                delivery.deliver(_files_of(shard))
            resumed += shard.nbytes
            emit(Step("resumed", shard.name, shard.nbytes))
        else:
            todo.append(shard)
    return todo, resumed


def _is_as_planned(path: str, shard: ShardPlan) -> bool:
    try:
        _compare(path, shard)
    except FormatError:
        return False
    return True


def _compare(path: str, shard: ShardPlan) -> None:
    """Re-read a written shard with our own parser and compare it with the plan."""
    read_header(path)
    with open(path, "rb") as stream:
        same = stream.read(len(shard.header)) == shard.header
    if not same or os.path.getsize(path) != shard.nbytes:
        raise FormatError("a written shard is not what was planned", where=[path], help="a fault of the disk, or of surgery: report it")


def _check_space(plan: Plan, stage: Stage, resumed: int, delivery: Delivery | None) -> None:
    free = shutil.disk_usage(stage.path).free + sum(
        os.stat(os.path.join(stage.path, f)).st_blocks * 512 for f in os.listdir(stage.path) if f.endswith(".part")
    )
    needed = min(plan.needed - resumed, plan.needed_for(delivery.room)) if delivery else plan.needed - resumed
    if needed > free:
        if not os.listdir(stage.path):
            os.rmdir(stage.path)
        raise NoSpace(
            f"the output needs {needed} bytes, and {free} are free",
            where=[os.path.dirname(stage.dest)],
            help="make room, or put the stage on another disk with --stage" if delivery else "make room, or write to another disk with -o",
        )


class _Shard:
    """A shard at work: its file, the parts that nobody has taken yet, and how many are being filled."""

    def __init__(self, shard: ShardPlan, path: str) -> None:
        self.plan, self.path = shard, path
        self.sidecar: SidecarFile | None = None
        self.parts = (part for step in shard.steps() for part in _cut(step))
        self.pending, self.issued, self.overflowed = 0, False, False
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.fd = os.open(f"{path}.part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def begin(self, *, scratch: bool) -> None:
        """Header and size: all else is zero. A scratch file keeps what is in it."""
        if not scratch:
            os.truncate(self.fd, 0)
        _write(self.fd, memoryview(self.plan.header), 0)
        os.truncate(self.fd, self.plan.nbytes)
        if self.plan.sidecar:
            self.sidecar = SidecarFile(self.plan, self.path.removesuffix(self.plan.name))

    def close(self) -> None:
        """Close the file, once."""
        if self.sidecar:
            self.sidecar.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _Crew:
    """Workers that fill shards, and a thread that makes the filled ones durable while they go on.

    Each worker has a shard of its own as long as there are enough: the kernel lets one writer at a time into a file.
    A `scratch` file is no output: it keeps the name of an unfinished part. With a `delivery`, finished shards leave the folder
    in the caller's thread, where Ctrl-C reaches an upload, and no more are begun than there is room for.
    """

    def __init__(
        self,
        shards: Sequence[ShardPlan],
        folder: str,
        space: Callable[[], Workspace],
        emit: Callable[[Step], None],
        *,
        scratch: bool,
        delivery: Delivery | None = None,
    ) -> None:
        self.folder, self.space, self.emit, self.scratch, self.delivery = folder, space, emit, scratch, delivery
        self.waiting = deque(shards)
        self.room = delivery.room if delivery else len(shards)
        self.opened: list[_Shard] = []
        self.filled: SimpleQueue[_Shard | None] = SimpleQueue()
        self.finished: SimpleQueue[_Shard | None] = SimpleQueue()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.changed = threading.Condition(self.lock)
        self.errors: list[BaseException] = []
        self.losses: dict[str, Loss] = {}

    def run(self, workers: int) -> dict[str, Loss]:
        """Fill all shards. The first error stops all workers and is raised; when this returns or raises, all is at rest.

        What rounding did, by tensor, is returned. A shard with weights that became infinite is not finished: a rerun makes it anew.
        """
        running: list[threading.Event] = []
        self.working = workers
        named = self._start(self._name, "sync")
        # Not `join`: before Python 3.13 a join that Ctrl-C interrupts takes a thread that still writes for one that ended.
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
            for ended in running:
                ended.wait()
            self.filled.put(None)
            named.wait()
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
                    nbytes = _fill(shard, part, space)
                    if not isinstance(part, Keep):
                        name = _tensor_at(shard.plan, part.to)
                        self._count(shard, name, space.take_loss())
                        self.emit(Step("filled", shard.plan.name, nbytes, name))
                with self.lock:
                    shard.pending -= 1
                    done = shard.issued and not shard.pending
                if done and not self.scratch and not shard.overflowed:
                    self.filled.put(shard)
        finally:
            space.close()

    def _count(self, shard: _Shard, name: str, loss: Loss) -> None:
        if loss.changed or loss.overflowed:
            with self.lock:
                self.losses.setdefault(name, Loss()).__iadd__(loss)
                shard.overflowed |= bool(loss.overflowed)

    def _take(self, mine: _Shard | None) -> tuple[_Shard, Part | None] | None:
        """The next part of a worker's own shard, of a new one, or at last of another's; no part: the shard is all taken."""
        with self.changed:
            while (shard := self._next(mine)) is None and self.waiting and not self.stop.is_set():
                self.changed.wait()  # until a delivery makes room
            if shard is None:
                return None
            part = next(shard.parts, None)
            shard.issued = part is None
            shard.pending += 1
            return shard, part

    def _next(self, mine: _Shard | None) -> _Shard | None:
        """The shard to go on with: one's own, a new one, or, when all are begun that may be, another's of which parts are left."""
        if self.stop.is_set():
            return None
        if mine and not mine.issued:
            return mine
        if self.waiting and self.room:
            self.room -= 1
            return self._begin(self.waiting.popleft())
        return next((shard for shard in self.opened if not shard.issued), None)

    def _begin(self, plan: ShardPlan) -> _Shard:
        shard = _Shard(plan, os.path.join(self.folder, plan.name))
        self.opened.append(shard)
        shard.begin(scratch=self.scratch)
        self.emit(Step("begun", plan.name, len(plan.header)))
        return shard

    def _name(self) -> None:
        space = self.space()
        try:
            while shard := self.filled.get():
                _finish(shard, self.emit, space)
                if self.delivery:
                    self.finished.put(shard)
        finally:
            space.close()
            self.finished.put(None)

    def _deliver(self, shard: _Shard) -> None:
        assert self.delivery
        self.delivery.deliver(_files_of(shard.plan))
        self.emit(Step("sent", shard.plan.name, shard.plan.nbytes))
        with self.changed:
            self.room += 1
            self.changed.notify_all()


def _files_of(shard: ShardPlan) -> list[str]:
    """The files that a finished shard is: its record, and itself."""
    return [*([shard.sidecar.name] if shard.sidecar else []), shard.name]


def _cut(step: Part) -> Iterator[Part]:
    """A step as parts of bounded size, so that workers share a large tensor."""
    match step:
        case Copy(file, first, to, nbytes):
            chunk = FILL_CHUNK if file.remote else COPY_CHUNK
            for at in range(0, nbytes, chunk):
                yield Copy(file, first + at, to + at, min(chunk, nbytes - at))
        case Fill(tensor, first, stop, to, kept):
            elements = _elements(kept.original if kept else tensor, blockwise=bool(kept) or isinstance(tensor, Restored))
            for start in range(first, stop, elements):
                yield Fill(tensor, start, min(start + elements, stop), to + (start - first) * tensor.dtype.bits // 8, kept)
        case Keep(kept, first, stop):
            elements = _elements(kept.original, blockwise=True)
            yield from (Keep(kept, start, min(start + elements, stop)) for start in range(first, stop, elements))


def _elements(tensor: Tensor, *, blockwise: bool) -> int:
    """Elements of a part: whole tiles of a sum, whole blocks of a record."""
    unit = block_of(tensor.shape) if blockwise else 8 * (ROWS * tensor.shape[-1] if isinstance(tensor, Sum) and tensor.shape else 1)
    return max(1, FILL_CHUNK * 8 // tensor.dtype.bits // unit) * unit


def _fill(shard: _Shard, part: Part, space: Workspace) -> int:
    """Write one part; returns its bytes."""
    match part:
        case Copy(file, at, to, nbytes):
            copy_range(space.reader, file, at, shard.fd, to, nbytes)
            return nbytes
        case Fill(tensor, start, stop, to, kept):
            for offset, data in blocks(tensor, start, stop, space):
                _write(shard.fd, data, to + offset)
            if kept and shard.sidecar:
                shard.sidecar.record(kept, start, stop, space)
            return (stop - start) * tensor.dtype.bits // 8
        case Keep(kept, start, stop):
            if shard.sidecar:
                shard.sidecar.record(kept, start, stop, space)
            return 0


def copy_range(reader: Reader, file: File, at: int, fd: int, to: int, nbytes: int) -> None:
    """Copy bytes between files: in the kernel where it can, else through a buffer, as from the Hub."""
    done = _copied(source, at, fd, to, nbytes) if (source := reader.fd(file)) is not None else 0
    for part in reader.stream(file, at + done, nbytes - done):
        _write(fd, part, to + done)
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


def _write(fd: int, data: memoryview, to: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], to + done)


def _tensor_at(shard: ShardPlan, to: int) -> str:
    """The name of the tensor that holds byte `to` of the shard."""
    low, high = 0, len(shard.slots)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if shard.slots[middle].to <= to else (low, middle)
    return shard.slots[low].name if shard.slots else ""


def _finish(shard: _Shard, emit: Callable[[Step], None], space: Workspace) -> None:
    """Make a filled shard durable, prove that it is what was planned, and give it its name; its record first."""
    try:
        os.fsync(shard.fd)
        if shard.sidecar:
            shard.sidecar.finish(space)
            emit(Step("recorded", shard.plan.name))
    finally:
        shard.close()
    emit(Step("synced", shard.plan.name))
    _compare(f"{shard.path}.part", shard.plan)
    os.rename(f"{shard.path}.part", shard.path)
    sync(os.path.dirname(shard.path))
    emit(Step("finished", shard.plan.name))


def _linked(shard: ShardPlan, stage: Stage, links: Links) -> bool:
    """Whether the shard is there now, as a link to the input that it is. Durable, and compared with the plan, as any shard."""
    file = whole_file(shard)
    if file is None or shard.sidecar or not links.link(file, shard.name):
        return False
    _compare(os.path.join(stage.path, shard.name), shard)
    return True


def whole_file(shard: ShardPlan) -> File | None:
    """The input file that the shard is, byte for byte, its header included; None where it is not just that."""
    match list(islice(shard.steps(), 2)):
        case [Copy(file, at, to, nbytes)] if not file.remote and at == to == len(shard.header) and to + nbytes == file.size == shard.nbytes:
            with open(file.path, "rb") as stream:
                return file if stream.read(to) == shard.header else None
    return None


def _write_files(plan: Plan, stage: Stage, emit: Callable[[Step], None], delivery: Delivery | None, links: Links | None) -> None:
    """Carried files, then the index, then the manifest, which declares the stage complete.

    A file that a broken run left is removed, not written over: it may be a link to an input.
    """
    space = Workspace(4 * PIECE)
    try:
        for path in sorted(plan.files, key=lambda p: (p == MANIFEST, p.endswith(".index.json"), p)):
            if delivery and delivery.has(path):
                continue
            file, target = plan.files[path], os.path.join(stage.path, path)
            if links and isinstance(file, File) and links.link(file, path):
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            removed(target)
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                if isinstance(file, bytes):
                    _write(fd, memoryview(file), 0)
                else:
                    copy_range(space.reader, file, 0, fd, 0, file.size)
                os.fsync(fd)
            finally:
                os.close(fd)
            nbytes = len(file) if isinstance(file, bytes) else file.size
            emit(Step("file", path, nbytes))
            if delivery and nbytes >= BULKY:
                delivery.deliver([path])
                emit(Step("sent", path, nbytes))
    finally:
        space.close()


def _record_note(plan: Plan, stage: Stage) -> list[str]:
    """What the undo record takes, if there is one."""
    paths = [s.sidecar.name for s in plan.shards if s.sidecar]
    size = sum(os.path.getsize(os.path.join(stage.path, path)) for path in (*paths, BASE)) if paths else 0
    return [f"undo record: {size} bytes in .surgery/, {size / plan.nbytes:.2%} of the shards; surgery unmerge needs it"] if paths else []


def _remove_strays(plan: Plan, stage: Stage) -> None:
    """Leave in the stage just what the plan names: half-written parts and scratch go."""
    wanted = {s.name for s in plan.shards} | {s.sidecar.name for s in plan.shards if s.sidecar} | set(plan.files)
    for here, _, names in os.walk(stage.path):
        for name in names:
            path = os.path.join(here, name)
            if os.path.relpath(path, stage.path) not in wanted:
                os.unlink(path)
        if here != stage.path:
            sync(here)
