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
from queue import SimpleQueue
from typing import Literal

from .checkpoint import Checkpoint
from .errors import FormatError, NoSpace, SurgeryError
from .evaluate import DEFAULT_MEMORY, LEAST_BUDGET, ROWS, SCRATCH, Workspace, blocks, exact
from .formats.manifest import MANIFEST
from .formats.peft import Adapter
from .formats.safetensors import read_header
from .plan import Copy, Fill, Plan, ShardPlan, plan
from .read import Reader
from .sharding import parse_size
from .stage import Stage, size_of, staged, sync
from .tensor import File, Sum

COPY_CHUNK = 64 << 20  # bytes of one kernel copy: a unit of work and of progress
FILL_CHUNK = 16 << 20  # bytes of one evaluation
PIECE = 1 << 20  # bytes of the read/write loop where the kernel cannot copy
# Where the kernel cannot copy, or does not tell which side failed (EIO): the read/write loop can, and does.
NO_KERNEL_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF, errno.EIO)


@dataclass(frozen=True, slots=True)
class Step:
    """What the executor has just done; `nbytes` were written by it. `name` is the shard, file or folder."""

    kind: Literal["resumed", "begun", "filled", "synced", "finished", "file", "staged", "published"]
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
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Plan and execute: afterwards `dest` holds the whole checkpoint or adapter, or, after an error, what it held before."""
    made = plan(checkpoint, max_shard_size, balanced=balanced, drop_metadata=drop_metadata)
    return execute(made, dest, memory=memory, workers=workers, overwrite=overwrite, on_step=on_step)


def execute(
    plan: Plan,
    dest: str | os.PathLike[str],
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Carry out `plan` at `dest`. `memory` (bytes, or "512MB") bounds the buffers of all `workers` together.

    Bytes do not depend on `workers` or `memory`. `on_step` is called after each step, from any worker, never by two at
    once. Raises DestinationError, NoSpace, SourceChanged; the finished shards stay staged, and a rerun resumes them.
    """
    begun = time.monotonic()
    emit = _serial(on_step)
    count, budget = _share(plan, parse_size(memory), workers)
    inputs = [*(i.path for i in plan.inputs), *(f.path for f in _sources(plan))]
    with staged(os.fspath(dest), plan.identity, overwrite=overwrite, inputs=inputs) as stage:
        todo, resumed = _resume(plan, stage, emit)
        _check_space(plan, stage, resumed)
        notes = [*plan.notes]
        notes += [f"resumed: {resumed} bytes were there from a broken run of the same plan"] if resumed else []
        notes += [f"a stage of another plan, {size_of(s)} bytes: {s} (surgery clean removes it)" for s in stage.stale]
        with ExitStack() as stack:
            if plan.arithmetic:
                stack.enter_context(exact())
            space = partial(Workspace, budget, {SCRATCH: os.path.join(stage.path, f"{SCRATCH}.part")})
            if plan.scratch and todo:
                for slot in plan.scratch.slots:  # one by one: a scratch tensor may be made of those before it
                    _Crew([replace(plan.scratch, slots=(slot,))], stage.path, space, emit, scratch=True).run(count)
            _Crew(todo, stage.path, space, emit, scratch=False).run(count)
        _write_files(plan, stage, emit)
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


def _resume(plan: Plan, stage: Stage, emit: Callable[[Step], None]) -> tuple[list[ShardPlan], int]:
    """The shards that are still to be made, and the bytes of those that a broken run of this plan finished."""
    todo, resumed = [], 0
    for shard in plan.shards:
        path = os.path.join(stage.path, shard.name)
        if os.path.isfile(path) and _is_as_planned(path, shard):
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
        self.parts = (part for step in shard.steps() for part in _cut(step))
        self.pending, self.issued = 0, False
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self.fd = os.open(f"{path}.part", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def begin(self, *, scratch: bool) -> None:
        """Header and size: all else is zero. A scratch file keeps what is in it."""
        if not scratch:
            os.truncate(self.fd, 0)
        _write(self.fd, memoryview(self.plan.header), 0)
        os.truncate(self.fd, self.plan.nbytes)

    def close(self) -> None:
        """Close the file, once."""
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

    def run(self, workers: int) -> None:
        """Fill all shards. The first error stops all workers and is raised; when this returns or raises, all is at rest."""
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
                    nbytes = _fill(shard.fd, part, space)
                    self.emit(Step("filled", shard.plan.name, nbytes, _tensor_at(shard.plan, part.to)))
                with self.lock:
                    shard.pending -= 1
                    done = shard.issued and not shard.pending
                if done and not self.scratch:
                    self.filled.put(shard)
        finally:
            space.close()

    def _take(self, mine: _Shard | None) -> tuple[_Shard, Copy | Fill | None] | None:
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
        while shard := self.filled.get():
            _finish(shard, self.emit)


def _cut(step: Copy | Fill) -> Iterator[Copy | Fill]:
    """A step as parts of bounded size, so that workers share a large tensor."""
    if isinstance(step, Copy):
        for at in range(0, step.nbytes, COPY_CHUNK):
            yield Copy(step.file, step.at + at, step.to + at, min(COPY_CHUNK, step.nbytes - at))
        return
    bits = step.tensor.dtype.bits
    unit = 8 * (ROWS * step.tensor.shape[-1] if isinstance(step.tensor, Sum) and step.tensor.shape else 1)
    elements = max(1, FILL_CHUNK * 8 // bits // unit) * unit
    for start in range(step.start, step.stop, elements):
        yield Fill(step.tensor, start, min(start + elements, step.stop), step.to + (start - step.start) * bits // 8)


def _fill(fd: int, part: Copy | Fill, space: Workspace) -> int:
    """Write one part; returns its bytes."""
    match part:
        case Copy(file, at, to, nbytes):
            copy_range(space.reader, file, at, fd, to, nbytes, space)
            return nbytes
        case Fill(tensor, start, stop, to):
            for offset, data in blocks(tensor, start, stop, space):
                _write(fd, data, to + offset)
            return (stop - start) * tensor.dtype.bits // 8


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


def _finish(shard: _Shard, emit: Callable[[Step], None]) -> None:
    """Make a filled shard durable, prove that it is what was planned, and give it its name."""
    try:
        os.fsync(shard.fd)
    finally:
        shard.close()
    emit(Step("synced", shard.plan.name))
    _compare(f"{shard.path}.part", shard.plan)
    os.rename(f"{shard.path}.part", shard.path)
    sync(os.path.dirname(shard.path))
    emit(Step("finished", shard.plan.name))


def _write_files(plan: Plan, stage: Stage, emit: Callable[[Step], None]) -> None:
    """Carried files, then the index, then the manifest, which declares the stage complete."""
    space = Workspace(4 * PIECE)
    try:
        for path in sorted(plan.files, key=lambda p: (p == MANIFEST, p.endswith(".index.json"), p)):
            file, target = plan.files[path], os.path.join(stage.path, path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
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


def _remove_strays(plan: Plan, stage: Stage) -> None:
    """Leave in the stage just what the plan names: half-written parts and scratch go."""
    wanted = {s.name for s in plan.shards} | set(plan.files)
    for here, _, names in os.walk(stage.path):
        for name in names:
            path = os.path.join(here, name)
            if os.path.relpath(path, stage.path) not in wanted:
                os.unlink(path)
        if here != stage.path:
            sync(here)
