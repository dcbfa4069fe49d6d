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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from queue import SimpleQueue
from typing import Literal

from .checkpoint import Checkpoint
from .errors import FormatError, NoSpace, SurgeryError, listed
from .evaluate import DEFAULT_MEMORY, LEAST_BUDGET, ROWS, SCRATCH, Workspace, blocks, exact
from .formats.manifest import MANIFEST
from .formats.peft import Adapter
from .formats.safetensors import read_header
from .losses import Erased, Loss, check_finite, erased_in, note_on
from .patch import block_of
from .plan import Copy, Fill, Keep, Part, Plan, ShardPlan, plan, written
from .read import Reader
from .record import BASE
from .sharding import parse_size
from .sidecar import SidecarFile
from .stage import Stage, size_of, staged, sync
from .tensor import File, Restored, Sum, Tensor

COPY_CHUNK = 64 << 20  # bytes of one kernel copy: a unit of work and of progress
FILL_CHUNK = 16 << 20  # bytes of one evaluation
PIECE = 1 << 20  # bytes of the read/write loop where the kernel cannot copy
# Where the kernel cannot copy, or does not tell which side failed (EIO): the read/write loop can, and does.
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO)
# Where a file cannot get a second name: on another file system, or one without links, or another user's file, or one too many.
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Step:
    """What the executor has just done; `nbytes` were written by it. `name` is the shard, file or folder."""

    kind: Literal["resumed", "linked", "begun", "filled", "recorded", "synced", "finished", "file", "staged", "published"]
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


def write(
    checkpoint: Checkpoint | Adapter,
    dest: str | os.PathLike[str],
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
    dest: str | os.PathLike[str],
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    link: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Carry out `plan` at `dest`. `memory` (bytes, or "512MB") bounds the buffers of all `workers` together.

    Bytes do not depend on `workers` or `memory`. `on_step` is called after each step, from any worker, never by two at
    once. Raises DestinationError, NoSpace, SourceChanged; the finished shards stay staged, and a rerun resumes them.

    `link`: a shard or carried file that is an input as it stands, header included, becomes a hard link to it, where the file
    system can: then nothing may be written to either. Without it the output shares nothing with the inputs.
    """
    begun = time.monotonic()
    emit = _serial(on_step)
    count, budget = _share(plan, parse_size(memory), workers)
    inputs = [*(i.path for i in plan.inputs), *(f.path for f in _sources(plan))]
    with staged(os.fspath(dest), plan.identity, overwrite=overwrite, inputs=inputs) as stage:
        todo, resumed = _resume(plan, stage, emit, link=link)
        links = _Links(stage, emit) if link else None
        todo = [shard for shard in todo if not (links and links.take(shard))]
        _check_space(plan, stage, resumed + (links.nbytes if links else 0))
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
            losses |= _Crew(todo, stage.path, space, emit, scratch=False).run(count)
            check_finite(losses, plan.dtypes)
        erased = erased_in(losses)
        notes += note_on(erased, losses)
        _write_files(plan, stage, emit, links)
        notes = [*(links.notes() if links else []), *notes, *_record_note(plan, stage)]
        _check_sources(plan)
        _remove_strays(plan, stage)
        emit(Step("staged", stage.path))
        stage.publish(overwrite=overwrite)
        emit(Step("published", stage.dest))
    return Report(
        output=os.path.abspath(os.fspath(dest)),
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
        notes=tuple(notes),
        erased=erased,
        linked=links.nbytes if links else 0,
    )


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
    wanted = workers if workers is not None else min(4, len(os.sched_getaffinity(0)))
    if wanted < 1:
        raise SurgeryError(f"{wanted} workers can do nothing", help="pass --workers 1 or more")
    count = max(1, min(wanted, memory // least))
    return count, memory // count


def _sources(plan: Plan) -> list[File]:
    """Every file that is read."""
    return [*(f for i in plan.inputs for f in i.files), *(f for f in plan.files.values() if isinstance(f, File))]


def _check_sources(plan: Plan) -> None:
    """Nothing was written to the inputs while we read them. Raises SourceChanged."""
    reader = Reader()
    try:
        for file in _sources(plan):
            reader.fd(file)
    finally:
        reader.close()


def _resume(plan: Plan, stage: Stage, emit: Callable[[Step], None], *, link: bool) -> tuple[list[ShardPlan], int]:
    """The shards that are still to be made, and the bytes of those that a broken run of this plan finished.

    What that run linked is made anew where this one is to share nothing with the inputs.
    """
    todo, resumed = [], 0
    for shard in plan.shards:
        path = os.path.join(stage.path, shard.name)
        recorded = not shard.sidecar or os.path.isfile(os.path.join(stage.path, shard.sidecar.name))
        if os.path.isfile(path) and recorded and _is_as_planned(path, shard) and (link or os.stat(path).st_nlink == 1):
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


def _check_space(plan: Plan, stage: Stage, resumed: int) -> None:
    free = shutil.disk_usage(stage.path).free + sum(
        os.stat(os.path.join(stage.path, f)).st_blocks * 512 for f in os.listdir(stage.path) if f.endswith(".part")
    )
    needed = plan.needed - resumed
    if needed > free:
        if not os.listdir(stage.path):
            os.rmdir(stage.path)
        raise NoSpace(
            f"the output needs {needed} bytes, and {free} are free",
            where=[os.path.dirname(stage.dest)],
            help="make room, or write to another disk with -o",
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
    A `scratch` file is no output: it keeps the name of an unfinished part.
    """

    def __init__(
        self, shards: Sequence[ShardPlan], folder: str, space: Callable[[], Workspace], emit: Callable[[Step], None], *, scratch: bool
    ) -> None:
        self.folder, self.space, self.emit, self.scratch = folder, space, emit, scratch
        self.waiting = iter(shards)
        self.opened: list[_Shard] = []
        self.filled: SimpleQueue[_Shard | None] = SimpleQueue()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.errors: list[BaseException] = []
        self.losses: dict[str, Loss] = {}

    def run(self, workers: int) -> dict[str, Loss]:
        """Fill all shards. The first error stops all workers and is raised; when this returns or raises, all is at rest.

        What rounding did, by tensor, is returned. A shard with weights that became infinite is not finished: a rerun makes it anew.
        """
        running: list[threading.Event] = []
        named = self._start(self._name, "sync")
        # Not `join`: before Python 3.13 a join that Ctrl-C interrupts takes a thread that still writes for one that ended.
        try:
            for i in range(workers):
                running.append(self._start(self._work, str(i)))
            for ended in running:
                ended.wait()
            self.filled.put(None)
            named.wait()
        finally:
            self.stop.set()
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
                self.stop.set()
            finally:
                ended.set()

        threading.Thread(target=guarded, name=f"surgery-{title}", daemon=True).start()
        return ended

    def _work(self) -> None:
        space, shard = self.space(), None
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
        with self.lock:
            shard = None if self.stop.is_set() else mine if mine and not mine.issued else self._begin()
            if shard is None:
                return None
            part = next(shard.parts, None)
            shard.issued = part is None
            shard.pending += 1
            return shard, part

    def _begin(self) -> _Shard | None:
        """The next shard, begun; when all are, one of which parts are left."""
        plan = next(self.waiting, None)
        if plan is None:
            return next((shard for shard in self.opened if not shard.issued), None)
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
        finally:
            space.close()


def _cut(step: Part) -> Iterator[Part]:
    """A step as parts of bounded size, so that workers share a large tensor."""
    match step:
        case Copy(file, first, to, nbytes):
            for at in range(0, nbytes, COPY_CHUNK):
                yield Copy(file, first + at, to + at, min(COPY_CHUNK, nbytes - at))
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
            copy_range(space.reader, file, at, shard.fd, to, nbytes, space)
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


def copy_range(reader: Reader, file: File, at: int, fd: int, to: int, nbytes: int, space: Workspace) -> None:
    """Copy bytes between files: in the kernel where it can, else through a buffer."""
    done = 0
    source = reader.fd(file)
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
    while done < nbytes:
        data = space.buffer("window", min(PIECE, nbytes - done))
        reader.read(file, at + done, data)
        _write(fd, data, to + done)
        done += len(data)


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


def whole_file(shard: ShardPlan) -> File | None:
    """The input file that the shard is, byte for byte, its header included; None where it is not just that."""
    match list(islice(shard.steps(), 2)):
        case [Copy(file, at, to, nbytes)] if at == to == len(shard.header) and to + nbytes == file.size == shard.nbytes:
            with open(file.path, "rb") as stream:
                return file if stream.read(to) == shard.header else None
    return None


class _Links:
    """Hard links from a stage to inputs: what was linked, and what could not be."""

    def __init__(self, stage: Stage, emit: Callable[[Step], None]) -> None:
        self.stage, self.emit = stage, emit
        self.nbytes, self.refused = 0, list[str]()

    def take(self, shard: ShardPlan) -> bool:
        """Whether the shard is there now, as a link to the input that it is. Durable, and compared with the plan, as any shard."""
        file = whole_file(shard)
        if file is None or shard.sidecar or not self.link(file, shard.name):
            return False
        _compare(os.path.join(self.stage.path, shard.name), shard)
        return True

    def link(self, file: File, name: str) -> bool:
        """Whether `name` is a link to the input now. A name is made, never a byte written: the input stays what it is."""
        target = os.path.join(self.stage.path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        _remove(target)
        try:
            os.link(os.path.realpath(file.path), target)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self.refused.append(f"{name}: {error.strerror}")
            return False
        sync(target)
        sync(os.path.dirname(target))
        self.nbytes += file.size
        self.emit(Step("linked", name, file.size))
        return True

    def notes(self) -> list[str]:
        """What the report says of it."""
        said = [f"hard-linked to the inputs: {self.nbytes} bytes; whoever writes to one of them writes to both"] if self.nbytes else []
        return said + ([f"copied, since they could not be linked: {', '.join(listed(self.refused))}"] if self.refused else [])


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _write_files(plan: Plan, stage: Stage, emit: Callable[[Step], None], links: _Links | None) -> None:
    """Carried files, then the index, then the manifest, which declares the stage complete.

    A file that a broken run left is removed, not written over: it may be a link to an input.
    """
    space = Workspace(4 * PIECE)
    try:
        for path in sorted(plan.files, key=lambda p: (p == MANIFEST, p.endswith(".index.json"), p)):
            file, target = plan.files[path], os.path.join(stage.path, path)
            if links and isinstance(file, File) and links.link(file, path):
                continue
            os.makedirs(os.path.dirname(target), exist_ok=True)
            _remove(target)
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            try:
                if isinstance(file, bytes):
                    _write(fd, memoryview(file), 0)
                else:
                    copy_range(space.reader, file, 0, fd, 0, file.size, space)
                os.fsync(fd)
            finally:
                os.close(fd)
            emit(Step("file", path, len(file) if isinstance(file, bytes) else file.size))
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
