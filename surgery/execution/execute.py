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
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from ..arguments import in_both
from ..checkpoint import UNDO, Checkpoint
from ..errors import DestinationError, FormatError, NoSpace, listed, printable
from ..evaluation.arithmetic import exact_at_last
from ..evaluation.evaluate import workspace_of
from ..evaluation.loading import load_soon
from ..evaluation.losses import (
    Erased,
    Loss,
    Narrowed,
    Recoded,
    check_finite,
    check_survives,
    erased_in,
    narrowed_in,
    note_on,
    note_on_broken,
    note_on_narrowed,
    note_on_recoded,
    recoded_in,
)
from ..evaluation.read import PIECE, Reader
from ..evaluation.scratch import SCRATCH
from ..evaluation.workspace import DEFAULT_MEMORY
from ..files.folder import absolute
from ..files.manifest import MANIFEST
from ..files.opening import regular
from ..files.peft import Adapter
from ..files.refs import SCHEME, has_scheme, is_address, name_of_url
from ..lazy.tensor import File, is_computed, stored
from ..notebook import shown, told_of
from ..opened import takes_opened
from ..planning.outputs import check_distinct, outputs_of
from ..planning.plan import Plan, plan, written
from ..planning.sharding import parse_size
from ..planning.steps import Copy, ShardPlan
from ..units import size
from .cluster import Nodes, check_executor, nodes
from .crew import Crew, Delivery, Step, compare, copy_range, files_of
from .links import Links
from .reflinks import Sharing, check_mode, check_shareable, made_so, saved, sharing_of
from .share import share_of
from .stage import Stage, size_of, staged, write_at
from .writing_inside import PARTS, durable, part_of

if TYPE_CHECKING:
    from ..hub.content import PushReport
    from ..hub.stream import HubDestination

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
    recoded: Recoded | None = None  # what is left of a change in codes that were made again
    narrowed: tuple[Narrowed, ...] = ()  # where a dtype of less reach made values zero, or infinite
    costs: Mapping[str, object] = field(default_factory=dict)  # what another base than the adapters' costs
    shared: int = 0  # bytes that lie in blocks of inputs, where the file system shares blocks
    linked: int = 0  # bytes that lie in the output without having been written: hard links to inputs
    commit: PushReport | None = None  # of an output on the Hub

    def __repr__(self) -> str:
        done = f"{self.tensors} tensors in {self.shards} shards, {self.computed} computed, {self.nbytes:,} bytes"
        return f"<Report of {printable(self.output)}: {done} in {self.seconds:.1f} s>"

    def _repr_html_(self) -> str:
        facts = {
            "tensors": f"{self.tensors:,} in {self.shards:,} shards",
            "copied": self.copied,
            "computed": self.computed,
            "dropped": self.dropped,
            "replaced": self.replaced,
            "added": self.added,
            "files": self.files,
            "size": size(self.nbytes),
            "seconds": f"{self.seconds:.1f}",
            "mostly erased by rounding": len(self.erased),
        }
        return shown(f"Report of {self.output}", {**facts, **told_of(self)})


@takes_opened
def write(
    checkpoint: Checkpoint | Adapter,
    dest: str | os.PathLike[str] | HubDestination,
    max_shard_size: int | str | None = None,
    *,
    balanced: bool = False,
    drop_metadata: Sequence[str] = (),
    align: int | str | None = None,
    memory: int | str = DEFAULT_MEMORY,
    workers: int | None = None,
    overwrite: bool = False,
    discard_edits: bool = False,
    link: bool = False,
    reflink: str = "auto",
    check_all: bool = False,
    executor: str = "local",
    address: str = "",
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Plan and execute: afterwards `dest` holds the whole checkpoint or adapter, or, after an error, what it held
    before.
    """
    made = plan(checkpoint, max_shard_size, balanced=balanced, drop_metadata=drop_metadata, align=align)
    return execute(
        made,
        dest,
        memory=memory,
        workers=workers,
        overwrite=overwrite,
        discard_edits=discard_edits,
        link=link,
        reflink=reflink,
        check_all=check_all,
        executor=executor,
        address=address,
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
    reflink: str = "auto",
    check_all: bool = False,
    executor: str = "local",
    address: str = "",
    on_step: Callable[[Step], None] | None = None,
) -> Report:
    """Carry out `plan` at `dest`: a folder, or a repository on the Hub, `hf://org/name[@branch]` or a
    HubDestination.

    `memory` (bytes, or "512MB") bounds the buffers of all `workers` together.
    Bytes do not depend on `workers` or `memory`. `on_step` is called after each step, from any worker, never by two
    at once. Raises DestinationError, NoSpace, SourceChanged, HubError; the finished shards stay staged, and a rerun
    resumes them.

    `link`: a shard or carried file that is an input as it stands, header included, becomes a hard link to it, where
    the file system can: then nothing may be written to either. Without it no file of the output is one of an input.

    `reflink`: where the file system lets files share blocks (Btrfs, XFS), bytes that stay as they are share those of
    the inputs, but for edges of blocks, until one side is written: "auto". With "always" what cannot be shared is
    refused before work, with "never" all is copied.

    `overwrite` replaces an output of surgery, and refuses one that was edited since it was written unless
    `discard_edits` is given.

    An undo record is proved before its shard is published, or sent: of each tensor that the run touched one block is
    restored from what lies on the disk, with `check_all` every block of all tensors. Raises VerificationFailed where
    the base does not come back.

    `executor` "ray": the shards are made on the nodes of a Ray cluster, at `address` (host:port), or where Ray finds
    one, or on one that it starts here. `workers` are then the threads of each of its tasks, and `memory` bounds each.
    The bytes are the same; the nodes prove before work that they see what is here, or SurgeryError is raised.
    """
    begun = time.monotonic()
    check_mode(reflink)
    if plan.arithmetic and executor == "local":
        load_soon()
    check_executor(executor, address)
    remote = any(file.remote for file in _sources(plan))
    share = partial(share_of, plan, parse_size(memory), remote=remote)
    own = share(workers)
    replacing = {"overwrite": overwrite, "discard_edits": discard_edits}
    place, delivery = _delivery(plan, dest, **replacing)
    link = link and not delivery
    with staged(place, plan.identity, inputs=_local_inputs(plan), link=link, **replacing) as stage:
        run = _run(plan, stage, _serial(on_step), delivery, link=link, reflink=reflink, check_all=check_all)
        _check_sharing(run)
        todo, resumed = _resume(run)
        todo = [shard for shard in todo if not _linked(run, shard)]
        _check_space(run, resumed, todo)
        before = _notes(run, resumed)
        cluster = partial(nodes, address, stage.inside, todo, share, workers, arithmetic=plan.arithmetic)
        losses = _made(run, todo, own, cluster() if executor == "ray" and todo else nullcontext())
        _write_files(run)
        check_survives(recoded_in(losses), plan.survives)
        notes = [*before, *note_on(erased_in(losses), losses), *note_on_recoded(recoded_in(losses)), *_record_note(run)]
        notes += note_on_broken(losses)
        notes += note_on_narrowed(narrowed_in(losses, plan.dtypes), resumed=bool(resumed))
        commit = _published(run, **replacing)
        notes += [f"what was replaced cannot be removed: {path} (surgery clean says why)" for path in stage.left()]
    return _report(run, resumed, losses, notes, commit, time.monotonic() - begun)


@dataclass(frozen=True)
class _Run:
    """What the steps of a run share: its plan, the stage, and what was asked."""

    plan: Plan
    stage: Stage
    emit: Callable[[Step], None]
    delivery: Delivery | None  # where finished shards and files go, if they do not stay in the stage
    links: Links | None  # to inputs, if they are wanted
    sharing: Sharing  # of blocks with inputs
    check_all: bool


def _run(
    plan: Plan,
    stage: Stage,
    emit: Callable[[Step], None],
    delivery: Delivery | None,
    *,
    link: bool,
    reflink: str,
    check_all: bool,
) -> _Run:
    """A run in its stage, which can hold what the plan names. Raises DestinationError."""
    if stage.inside.folds():
        check_distinct([path for path, _ in outputs_of(plan.shards, plan.files)], stage.dest)
    if delivery:
        delivery.begin(stage.inside)
    links = Links(stage.inside, lambda name, size: emit(Step("linked", name, size))) if link else None
    return _Run(plan, stage, emit, delivery, links, sharing_of(reflink, _copied_files(plan), stage.inside), check_all)


def _notes(run: _Run, resumed: int) -> list[str]:
    """What is known before anything is made: what the plan says, what was found in the stage, and beside it."""
    notes, discarded = [*run.plan.notes], run.stage.discarded
    if resumed:
        notes.append(f"resumed: {resumed} bytes were there from a broken run of the same plan")
    if discarded:
        notes.append(f"replaced, though edited since surgery wrote it: {', '.join(listed(discarded))}")
    for path in run.stage.stale:
        notes.append(f"a stage of another plan, {size_of(path)} bytes: {path} (surgery clean removes it)")
    return notes


def _published(run: _Run, *, overwrite: bool, discard_edits: bool) -> PushReport | None:
    """The stage is the destination, or what the Hub got is visible there. Raises SourceChanged."""
    _check_sources(run.plan)
    if not run.delivery:
        _remove_strays(run)
    run.emit(Step("staged", run.stage.path))
    commit = run.delivery.publish() if run.delivery else None
    if not run.delivery:
        run.stage.publish(overwrite=overwrite, discard_edits=discard_edits)
    run.emit(Step("published", run.stage.dest))
    return commit


def _report(
    run: _Run,
    resumed: int,
    losses: Mapping[str, Loss],
    notes: Sequence[str],
    commit: PushReport | None,
    seconds: float,
) -> Report:
    """What the run did; each note once."""
    plan, links = run.plan, run.links
    notes = [*(links.notes() if links else ()), *run.sharing.notes(), *notes, *(commit.notes if commit else ())]
    return Report(
        output=commit.url if commit else run.stage.dest,
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
        seconds=seconds,
        history=plan.history,
        notes=tuple(dict.fromkeys(map(in_both, notes))),
        erased=erased_in(losses),
        recoded=recoded_in(losses),
        narrowed=narrowed_in(losses, plan.dtypes),
        costs=plan.costs,
        shared=run.sharing.nbytes,
        linked=links.nbytes if links else 0,
        commit=commit,
    )


def _made(
    run: _Run, todo: Sequence[ShardPlan], share: tuple[int, int], elsewhere: AbstractContextManager[Nodes | None]
) -> dict[str, Loss]:
    """Make the shards, and before them what must be there as a whole; what rounding did, by tensor. Raises
    VerificationFailed.
    """
    (count, budget), inside, losses = share, run.stage.inside, dict[str, Loss]()
    space = partial(workspace_of, budget, _unfinished(run))
    inside.empty(PARTS)
    with exact_at_last() if run.plan.arithmetic else nullcontext(_nothing) as ready, elsewhere as cluster:
        for one in run.plan.scratch.apart() if run.plan.scratch and todo else ():
            ready()
            made = Crew([one], inside, space, run.emit, scratch=True).run(count)  # in order: it may be made of others
            losses |= _of_users(run.plan, one, made)
        check_finite(losses, run.plan.dtypes)
        if cluster:
            losses |= cluster.run(run.emit, run.delivery, run.sharing, check_all=run.check_all)
        else:
            crew = Crew(
                todo,
                inside,
                space,
                run.emit,
                scratch=False,
                delivery=run.delivery,
                check_all=run.check_all,
                sharing=run.sharing,
                ready=ready,
            )
            losses |= crew.run(count)
        check_finite(losses, run.plan.dtypes)
    return losses


def _nothing() -> None:
    """What moves has nothing to wait for."""


def _unfinished(run: _Run) -> dict[str, str]:
    """Where what a plan reads of its own output lies while that is made: by the path under which the plan names it."""
    names = {written(shard.name): part_of(shard.name) for shard in run.plan.shards if shard.sidecar}
    names[SCRATCH] = part_of(SCRATCH, "scratch")
    return {named: run.stage.inside.at(part) for named, part in names.items()}


def _of_users(plan: Plan, scratch: ShardPlan, made: Mapping[str, Loss]) -> dict[str, Loss]:
    """The losses in scratch tensors, by the tensors into which they go."""
    lost = {name: loss for name, loss in made.items() if loss.erased or loss.overflowed or loss.broken or loss.codes}
    return {name: lost[slot.name] for slot in scratch.slots if slot.name in lost for name in plan.users(slot)}


def _delivery(
    plan: Plan, dest: str | os.PathLike[str] | HubDestination, *, overwrite: bool, discard_edits: bool
) -> tuple[str, Delivery | None]:
    """The local path beside which the stage will be, and where finished shards go if they do not stay in it."""
    if isinstance(dest, str | os.PathLike) and not has_scheme(text := os.fspath(dest)):
        if is_address(text):
            tip = f"write {SCHEME}{name_of_url(text) or 'org/name'} for a repository on the Hub, or give a folder here"
            raise DestinationError("nothing can be written to such an address", where=[text], help=tip)
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


def _local_inputs(plan: Plan) -> list[str]:
    """The paths of all that is read here: no output may take its place."""
    paths = [*(source.path for source in plan.inputs), *(file.path for file in _sources(plan))]
    return [path for path in paths if not has_scheme(path)]


def _sources(plan: Plan) -> list[File]:
    """Every file that is read."""
    return [*(f for i in plan.inputs for f in i.files), *(f for f in plan.files.values() if isinstance(f, File))]


def _copied_files(plan: Plan) -> list[File]:
    """Every file of which bytes stay as they are, each once."""
    kept = [slot.tensor for shard in plan.shards for slot in shard.slots if not is_computed(slot.tensor)]
    carried = [file for file in plan.files.values() if isinstance(file, File)]
    return [*dict.fromkeys([*(leaf.file for tensor in kept for leaf in stored(tensor)), *carried])]


def _check_sources(plan: Plan) -> None:
    """Nothing was written to the inputs while we read them; those on the Hub are of one commit. Raises
    SourceChanged.
    """
    with closing(Reader()) as reader:
        for file in _sources(plan):
            if not file.remote:
                reader.check(file)


def _resume(run: _Run) -> tuple[list[ShardPlan], int]:
    """The shards that are still to be made, and the bytes of those that a broken run of this plan finished."""
    todo, resumed = list[ShardPlan](), 0
    for shard in run.plan.shards:
        sent = run.delivery is not None and run.delivery.has(shard.name)
        told = not any(slot.name in run.plan.recoded for slot in shard.slots)  # else what is lost is to be measured
        if not (told and (sent or _is_finished(run, shard))):
            todo.append(shard)
            continue
        if run.delivery and not sent:
            run.delivery.deliver(files_of(shard))
        resumed += shard.nbytes
        run.emit(Step("resumed", shard.name, shard.nbytes))
    return todo, resumed


def _is_finished(run: _Run, shard: ShardPlan) -> bool:
    """Whether a broken run of this plan left the shard as this one would make it.

    What that run linked is made anew where this one is to share nothing with the inputs, as is what has a record to
    `check_all` of.
    """
    inside = run.stage.inside
    if shard.sidecar and (run.check_all or not inside.status(shard.sidecar.name)):
        return False
    found = inside.status(shard.name)
    mine = found is not None and (run.links is not None or found.st_nlink == 1)
    path = os.path.join(run.stage.path, shard.name)
    return mine and made_so(run.sharing, shard, path) and _is_as_planned(path, shard)


def _is_as_planned(path: str, shard: ShardPlan) -> bool:
    try:
        compare(path, shard)
    except FormatError:
        return False
    return True


def _check_sharing(run: _Run) -> None:
    """Raise DestinationError where all that stays as it is should share blocks, and cannot."""
    try:
        check_shareable(run.sharing, run.plan.shards, _copied_files(run.plan), run.stage.dest)
    except DestinationError:
        _leave_nothing(run.stage)
        raise


def _leave_nothing(stage: Stage) -> None:
    """A stage in which nothing is yet is gone."""
    if not os.listdir(stage.path):
        os.rmdir(stage.path)


def _check_space(run: _Run, resumed: int, todo: Sequence[ShardPlan]) -> None:
    """Raise NoSpace where the disk has less than what is still to be written."""
    plan, stage, delivery = run.plan, run.stage, run.delivery
    free = shutil.disk_usage(stage.path).free + size_of(stage.inside.at(PARTS))
    needed = plan.needed - resumed - (run.links.nbytes if run.links else 0)
    needed -= run.sharing.nbytes + saved(run.sharing, todo)
    if delivery:
        needed = min(needed, plan.needed_for(delivery.room))
    if needed > free:
        _leave_nothing(stage)
        elsewhere = "put the stage on another disk with --stage" if delivery else "write to another disk with -o"
        raise NoSpace(
            f"the output needs {needed} bytes, and {free} are free",
            where=[os.path.dirname(stage.dest)],
            help=f"make room, or {elsewhere}",
        )


def _linked(run: _Run, shard: ShardPlan) -> bool:
    """Whether the shard is there now, as a link to the input that it is, or in the same blocks. Durable, and compared
    with the plan, as any shard.
    """
    wanted = (run.links or run.sharing.wanted) and not (shard.sidecar or run.delivery)
    file = whole_file(shard) if wanted else None
    if not (file and ((run.links and run.links.link(file, shard.name)) or _shared(run, file, shard.name))):
        return False
    compare(os.path.join(run.stage.path, shard.name), shard)
    return True


def _shared(run: _Run, file: File, name: str) -> bool:
    """Whether the file `name` is there now, in the blocks of the input that it is, whole and durable."""
    if not (run.sharing.wanted and file.size):
        return False
    part = part_of(name)
    fd = run.stage.inside.create(part)
    try:
        with closing(Reader()) as reader:
            source = reader.fd(file)
            if source is None or not run.sharing.whole(source, fd, file.size):
                return False
        durable(fd)
    finally:
        os.close(fd)
    run.stage.inside.rename(part, name)
    run.emit(Step("shared", name, file.size))
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


def _write_files(run: _Run) -> None:
    """Carried files, then the index, then the manifest, which declares the stage complete."""
    space = workspace_of(4 * PIECE)
    try:
        for path in sorted(run.plan.files, key=lambda p: (p == MANIFEST, p.endswith(".index.json"), p)):
            _write_file(run, path, run.plan.files[path], space.reader)
    finally:
        space.close()


def _write_file(run: _Run, path: str, file: File | bytes, reader: Reader) -> None:
    """The file is in the stage, or where it is delivered.

    One that a broken run left is removed, not written over: it may be a link to an input.
    """
    if (run.delivery and run.delivery.has(path)) or (
        isinstance(file, File) and ((run.links and run.links.link(file, path)) or _shared(run, file, path))
    ):
        return
    nbytes = _copied(run.stage.inside.create(path), file, reader, run.sharing)
    run.emit(Step("file", path, nbytes))
    if run.delivery and nbytes >= BULKY:
        run.delivery.deliver([path])
        run.emit(Step("sent", path, nbytes))


def _copied(fd: int, file: File | bytes, reader: Reader, sharing: Sharing) -> int:
    """The bytes of a file that is written to `fd`, durable; `fd` is closed."""
    try:
        if isinstance(file, bytes):
            write_at(fd, memoryview(file), 0)
        else:
            copy_range(reader, file, 0, fd, 0, file.size, sharing)
        os.fsync(fd)
    finally:
        os.close(fd)
    return len(file) if isinstance(file, bytes) else file.size


def _record_note(run: _Run) -> list[str]:
    """What the undo record takes, if there is one here."""
    paths = [shard.sidecar.name for shard in run.plan.shards if shard.sidecar]
    if not paths or run.delivery:
        return []
    size = sum(os.path.getsize(os.path.join(run.stage.path, path)) for path in (*paths, UNDO))
    part = f"{size / run.plan.nbytes:.2%}"
    return [f"undo record: {size} bytes in .surgery/, {part} of the shards; surgery unmerge needs it"]


def _remove_strays(run: _Run) -> None:
    """Leave in the stage just what the plan names: half-written parts and scratch go."""
    run.stage.inside.keep({path for path, _ in outputs_of(run.plan.shards, run.plan.files)})
