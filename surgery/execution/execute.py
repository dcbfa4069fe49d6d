"""The executor: a plan -> files. Boring on purpose.

The shards are made by a crew (`crew.py`), then come the carried files, the index, the manifest; then the stage is
published by one rename, or one commit. A shard under its final name is complete, and so is its record: that is the
whole resume rule.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ..checkpoint import UNDO, Checkpoint
from ..errors import FormatError, NoSpace, SurgeryError, listed
from ..evaluation.arithmetic import exact
from ..evaluation.evaluate import workspace_of
from ..evaluation.losses import Erased, Loss, check_finite, erased_in, note_on
from ..evaluation.read import PIECE, Reader
from ..evaluation.scratch import SCRATCH
from ..evaluation.workspace import DEFAULT_MEMORY, LEAST_BUDGET
from ..files.folder import absolute
from ..files.manifest import MANIFEST
from ..files.opening import regular
from ..files.peft import Adapter
from ..files.refs import has_scheme
from ..lazy.tensor import File
from ..opened import takes_opened
from ..planning.outputs import check_distinct, outputs_of
from ..planning.plan import Plan, plan, written
from ..planning.sharding import parse_size
from ..planning.steps import Copy, ShardPlan
from .crew import Crew, Delivery, Step, compare, copy_range, files_of
from .inside import PARTS, part_of
from .links import Links
from .stage import Stage, size_of, staged, write_at

if TYPE_CHECKING:
    from ..hub.content import PushReport
    from ..hub.stream import HubDestination

CONNECTIONS = 8  # workers where inputs are on the Hub: they wait more than they work
BULKY = 10_000_000  # bytes of a carried file that leaves the disk as a shard does, where shards do


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


@takes_opened
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
    discard_edits: bool = False,
    link: bool = False,
    check_all: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Plan and execute: afterwards `dest` holds the whole checkpoint or adapter, or, after an error, what it held
    before.
    """
    made = plan(checkpoint, max_shard_size, balanced=balanced, drop_metadata=drop_metadata)
    return execute(
        made,
        dest,
        memory=memory,
        workers=workers,
        overwrite=overwrite,
        discard_edits=discard_edits,
        link=link,
        check_all=check_all,
        on_step=on_step,
    )


@takes_opened
def execute(
    plan: Plan,
    dest: str | os.PathLike[str] | HubDestination,
    *,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    discard_edits: bool = False,
    link: bool = False,
    check_all: bool = False,
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Carry out `plan` at `dest`: a folder, or a repository on the Hub, `hf://org/name[@branch]` or a
    HubDestination.

    `memory` (bytes, or "512MB") bounds the buffers of all `workers` together.
    Bytes do not depend on `workers` or `memory`. `on_step` is called after each step, from any worker, never by two
    at once. Raises DestinationError, NoSpace, SourceChanged, HubError; the finished shards stay staged, and a rerun
    resumes them.

    `link`: a shard or carried file that is an input as it stands, header included, becomes a hard link to it, where
    the file system can: then nothing may be written to either. Without it the output shares nothing with the inputs.

    `overwrite` replaces an output of surgery, and refuses one that was edited since it was written unless
    `discard_edits` is given.

    An undo record is proved before its shard is published, or sent: of each tensor that the run touched one block is
    restored from what lies on the disk, with `check_all` every block of all tensors. Raises VerificationFailed where
    the base does not come back.
    """
    begun = time.monotonic()
    emit = _serial(on_step)
    count, budget = _share(plan, parse_size(memory), workers)
    inputs = [
        path for path in (*(i.path for i in plan.inputs), *(f.path for f in _sources(plan))) if not has_scheme(path)
    ]
    place, delivery = _delivery(plan, dest, overwrite=overwrite, discard_edits=discard_edits)
    link = link and not delivery
    with staged(
        place, plan.identity, overwrite=overwrite, inputs=inputs, link=link, discard_edits=discard_edits
    ) as stage:
        if stage.inside.folds():
            check_distinct([path for path, _ in outputs_of(plan.shards, plan.files)], stage.dest)
        if delivery:
            delivery.begin(stage.inside)
        todo, resumed = _resume(plan, stage, emit, delivery, link=link, check_all=check_all)
        links = Links(stage.inside, lambda name, size: emit(Step("linked", name, size))) if link else None
        todo = [shard for shard in todo if not (links and _linked(shard, stage, links))]
        _check_space(plan, stage, resumed + (links.nbytes if links else 0), delivery)
        notes = [*plan.notes]
        notes += [f"resumed: {resumed} bytes were there from a broken run of the same plan"] if resumed else []
        notes += (
            [f"replaced, though edited since surgery wrote it: {', '.join(listed(stage.discarded))}"]
            if stage.discarded
            else []
        )
        notes += [f"a stage of another plan, {size_of(s)} bytes: {s} (surgery clean removes it)" for s in stage.stale]
        losses = _made(plan, todo, stage, (count, budget), emit, delivery, check_all=check_all)
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
            stage.publish(overwrite=overwrite, discard_edits=discard_edits)
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


def _made(
    plan: Plan,
    todo: Sequence[ShardPlan],
    stage: Stage,
    share: tuple[int, int],
    emit: Callable[[Step], None],
    delivery: Delivery | None,
    *,
    check_all: bool,
) -> dict[str, Loss]:
    """Make the shards, and before them what must be there as a whole; what rounding did, by tensor. Raises
    VerificationFailed.
    """
    losses, (count, budget) = dict[str, Loss](), share
    unfinished = {written(s.name): part_of(s.name) for s in plan.shards if s.sidecar} | {
        SCRATCH: part_of(SCRATCH, "scratch")
    }
    space = partial(workspace_of, budget, {named: stage.inside.at(name) for named, name in unfinished.items()})
    stage.inside.empty(PARTS)
    with exact() if plan.arithmetic else nullcontext():
        for one in (
            plan.scratch.apart() if plan.scratch and todo else ()
        ):  # in order: one may be made of those before it
            made = Crew([one], stage.inside, space, emit, scratch=True).run(count)
            losses |= {
                name: loss
                for loss in made.values()
                if loss.erased or loss.overflowed
                for name in plan.users(one.slots[0])
            }
        check_finite(losses, plan.dtypes)
        losses |= Crew(todo, stage.inside, space, emit, scratch=False, delivery=delivery, check_all=check_all).run(
            count
        )
        check_finite(losses, plan.dtypes)
    return losses


def _delivery(
    plan: Plan, dest: str | os.PathLike[str] | HubDestination, *, overwrite: bool, discard_edits: bool
) -> tuple[str, Delivery | None]:
    """The local path beside which the stage will be, and where finished shards go if they do not stay in it."""
    if isinstance(dest, str | os.PathLike) and not has_scheme(os.fspath(dest)):
        return absolute(dest), None
    from ..hub.stream import deliver_to

    delivery = deliver_to(dest, plan, overwrite=overwrite, discard_edits=discard_edits)
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
        raise SurgeryError(
            f"{memory} bytes of memory are too few", help=f"this plan needs --memory {-(-least // 10**6)}MB or more"
        )
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
    """Nothing was written to the inputs while we read them; those on the Hub are of one commit. Raises
    SourceChanged.
    """
    reader = Reader()
    try:
        for file in _sources(plan):
            if not file.remote:
                reader.fd(file)
    finally:
        reader.close()


def _resume(
    plan: Plan, stage: Stage, emit: Callable[[Step], None], delivery: Delivery | None, *, link: bool, check_all: bool
) -> tuple[list[ShardPlan], int]:
    """The shards that are still to be made, and the bytes of those that a broken run of this plan finished.

    What that run linked is made anew where this one is to share nothing with the inputs, as is what has a record to
    `check_all` of.
    """
    todo, resumed = [], 0
    for shard in plan.shards:
        path = os.path.join(stage.path, shard.name)
        sent = delivery is not None and delivery.has(shard.name)
        recorded = not shard.sidecar or (stage.inside.status(shard.sidecar.name) and not check_all)
        found = stage.inside.status(shard.name) if recorded else None
        if sent or (found and (link or found.st_nlink == 1) and _is_as_planned(path, shard)):
            if delivery and not sent:
                delivery.deliver(files_of(shard))
            resumed += shard.nbytes
            emit(Step("resumed", shard.name, shard.nbytes))
        else:
            todo.append(shard)
    return todo, resumed


def _is_as_planned(path: str, shard: ShardPlan) -> bool:
    try:
        compare(path, shard)
    except FormatError:
        return False
    return True


def _check_space(plan: Plan, stage: Stage, resumed: int, delivery: Delivery | None) -> None:
    free = shutil.disk_usage(stage.path).free + size_of(stage.inside.at(PARTS))
    needed = min(plan.needed - resumed, plan.needed_for(delivery.room)) if delivery else plan.needed - resumed
    if needed > free:
        if not os.listdir(stage.path):
            os.rmdir(stage.path)
        raise NoSpace(
            f"the output needs {needed} bytes, and {free} are free",
            where=[os.path.dirname(stage.dest)],
            help="make room, or put the stage on another disk with --stage"
            if delivery
            else "make room, or write to another disk with -o",
        )


def _linked(shard: ShardPlan, stage: Stage, links: Links) -> bool:
    """Whether the shard is there now, as a link to the input that it is. Durable, and compared with the plan, as any
    shard.
    """
    file = whole_file(shard)
    if file is None or shard.sidecar or not links.link(file, shard.name):
        return False
    compare(os.path.join(stage.path, shard.name), shard)
    return True


def whole_file(shard: ShardPlan) -> File | None:
    """The input file that the shard is, byte for byte, its header included; None where it is not just that."""
    match list(islice(shard.steps(), 2)):
        case [Copy(file, at, to, nbytes)] if (
            not file.remote and at == to == len(shard.header) and to + nbytes == file.size == shard.nbytes
        ):
            with open(file.path, "rb", opener=regular) as stream:
                return file if stream.read(to) == shard.header else None
    return None


def _write_files(
    plan: Plan, stage: Stage, emit: Callable[[Step], None], delivery: Delivery | None, links: Links | None
) -> None:
    """Carried files, then the index, then the manifest, which declares the stage complete.

    A file that a broken run left is removed, not written over: it may be a link to an input.
    """
    space = workspace_of(4 * PIECE)
    try:
        for path in sorted(plan.files, key=lambda p: (p == MANIFEST, p.endswith(".index.json"), p)):
            if delivery and delivery.has(path):
                continue
            file = plan.files[path]
            if links and isinstance(file, File) and links.link(file, path):
                continue
            fd = stage.inside.create(path)
            try:
                if isinstance(file, bytes):
                    write_at(fd, memoryview(file), 0)
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
    size = sum(os.path.getsize(os.path.join(stage.path, path)) for path in (*paths, UNDO)) if paths else 0
    return (
        [f"undo record: {size} bytes in .surgery/, {size / plan.nbytes:.2%} of the shards; surgery unmerge needs it"]
        if paths
        else []
    )


def _remove_strays(plan: Plan, stage: Stage) -> None:
    """Leave in the stage just what the plan names: half-written parts and scratch go."""
    stage.inside.keep({path for path, _ in outputs_of(plan.shards, plan.files)})
