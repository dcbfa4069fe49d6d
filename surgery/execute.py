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
from queue import SimpleQueue
from typing import Literal

from .checkpoint import Checkpoint
from .errors import FormatError, NoSpace, SurgeryError
from .evaluate import DEFAULT_MEMORY, LEAST_BUDGET, ROWS, SCRATCH, Workspace, blocks, exact
from .formats.manifest import MANIFEST
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
    checkpoint: Checkpoint,
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
    """Plan and execute: afterwards `dest` holds the whole checkpoint, or, after an error, what it held before."""
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
            if plan.computed:
                stack.enter_context(exact())
            aliases = {SCRATCH: os.path.join(stage.path, f"{SCRATCH}.part")}
            if plan.scratch and todo:
                for slot in plan.scratch.slots:  # one by one: a scratch tensor may be made of those before it
                    _fill_all([replace(plan.scratch, slots=(slot,))], stage, count, budget, aliases, emit, scratch=True)
            _fill_all(todo, stage, count, budget, aliases, emit)
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
    least = LEAST_BUDGET if plan.computed else 4 * PIECE
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


def _fill_all(
    shards: Sequence[ShardPlan],
    stage: Stage,
    workers: int,
    budget: int,
    aliases: dict[str, str],
    emit: Callable[[Step], None],
    *,
    scratch: bool = False,
) -> None:
    """Fill `shards`, several parts at a time. The first error stops all workers and is raised.

    A `scratch` file is no output: it keeps the name of an unfinished part.
    """
    lock, stop = threading.Lock(), threading.Event()
    errors: list[BaseException] = []
    opened: list[_Shard] = []
    filled: SimpleQueue[_Shard | None] = SimpleQueue()  # made durable by a thread of their own: the workers go on filling

    queue = iter(shards)

    def begin() -> _Shard | None:
        shard = next(queue, None)
        if shard is None:
            return next((state for state in opened if not state.issued), None)
        state = _Shard(shard, os.path.join(stage.path, shard.name))
        opened.append(state)
        state.begin(scratch=scratch)
        emit(Step("begun", shard.name, len(shard.header)))
        return state

    def take(mine: _Shard | None) -> tuple[_Shard, Copy | Fill | None] | None:
        """The next part of a worker's own shard, of a new one, or at last of another's; no part: the shard is all taken.

        Each worker has a shard of its own as long as there are enough: the kernel lets one writer at a time into a file.
        """
        with lock:
            state = None if stop.is_set() else mine if mine and not mine.issued else begin()
            if state is None:
                return None
            part = next(state.parts, None)
            state.issued = part is None
            state.pending += 1
            return state, part

    def work(ended: threading.Event) -> None:
        space, state = Workspace(budget, aliases), None
        try:
            while item := take(state):
                state, part = item
                if part is not None:
                    nbytes = _fill(state.fd, part, space)
                    emit(Step("filled", state.plan.name, nbytes, _tensor_at(state.plan, part.to)))
                with lock:
                    state.pending -= 1
                    done = state.issued and not state.pending
                if done and not scratch:
                    filled.put(state)
        except BaseException as error:  # handed to the caller's thread, which raises it
            errors.append(error)
            stop.set()
        finally:
            space.close()
            ended.set()

    def name(ended: threading.Event) -> None:
        try:
            while state := filled.get():
                _finish(state, emit)
        except BaseException as error:
            errors.append(error)
            stop.set()
        finally:
            ended.set()

    # Not `join`: before Python 3.13 a join that Ctrl-C interrupts takes a thread that still writes for one that ended.
    running: list[threading.Event] = []

    def start(task: Callable[[threading.Event], None], title: str) -> threading.Event:
        ended = threading.Event()
        threading.Thread(target=task, args=(ended,), name=f"surgery-{title}", daemon=True).start()
        return ended

    named = start(name, "sync")
    try:
        for i in range(workers):
            running.append(start(work, str(i)))
        for ended in running:
            ended.wait()
        filled.put(None)
        named.wait()
    finally:
        stop.set()
        for ended in running:
            ended.wait()
        filled.put(None)
        named.wait()
        for state in opened:
            if state.fd >= 0:
                os.close(state.fd)
    if errors:
        raise errors[0]


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


def _finish(state: _Shard, emit: Callable[[Step], None]) -> None:
    """Make a filled shard durable, prove that it is what was planned, and give it its name."""
    fd, state.fd = state.fd, -1
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    emit(Step("synced", state.plan.name))
    _compare(f"{state.path}.part", state.plan)
    os.rename(f"{state.path}.part", state.path)
    sync(os.path.dirname(state.path))
    emit(Step("finished", state.plan.name))


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
