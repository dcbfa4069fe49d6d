"""What a machine of a cluster does for a run: prove that it is fit for it, and make shards.

Invariants. All that is written lies in the folder of one attempt, inside the run's own folder in the stage, under
names that nothing else has. The folder of the run is made by its driver alone, and removed by it, or by the next run,
before anything is published: in a folder that was removed nothing can be made, so that a worker which was given up,
and goes on, can change nothing. Only the driver gives a shard its name in the output.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial

from ..errors import SurgeryError, listed
from ..evaluation.arithmetic import arithmetic_identity, exact
from ..evaluation.evaluate import workspace_of
from ..evaluation.losses import Loss
from ..evaluation.read import Reader
from ..evaluation.scratch import SCRATCH
from ..lazy.function import Function
from ..lazy.tensor import File, Rowwise, Stored, Tensor, children
from ..planning.plan import written
from ..planning.steps import ShardPlan
from .crew import Crew, Step
from .reflinks import Sharing, sharing_of
from .stage import as_ours, write_at
from .writing_inside import Inside, part_of

HEAD, SAMPLE, SAMPLES = 1 << 20, 1 << 12, 16  # bytes of a source that are compared: its begin, and some of the rest
HEAD_ON_HUB = 1 << 12
SEEN_WITHIN = 15.0  # seconds after which what one machine wrote must show on another
TOLD_EVERY = 0.2  # seconds between two reports of a worker
DRIVER = "driver"  # the file in the folder of a run that its driver wrote
STEPS = ".steps"  # how files end in which workers report


@dataclass(frozen=True, slots=True)
class Fit:
    """What a machine must prove: that it sees these files as the driver does, and the folder of the run, in which it
    can write; and that arithmetic is the same there. Empty: there is none.
    """

    folder: str
    token: str  # what the driver wrote there
    files: Mapping[File, str]
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Job:
    """Some shards to make, by `threads` workers with `budget` bytes each."""

    number: int
    shards: tuple[ShardPlan, ...]
    fit: Fit
    proven: frozenset[str]  # the machines that are known to be fit
    aliases: Mapping[str, str]  # where files lie that the run made
    threads: int
    budget: int
    reflink: str
    check_all: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a job: the shards that lie finished in the folder `attempt`, or why there are not all of them."""

    attempt: str = ""
    made: tuple[str, ...] = ()
    losses: Mapping[str, Loss] = field(default_factory=dict)
    shared: tuple[int, dict[str, int]] = (0, {})
    error: SurgeryError | None = None


def seen(file: File) -> str:
    """What tells a file from another at the same path, as this machine sees it. Raises SurgeryError where it does not
    see the file that was opened.

    A local file has the size and time that it had then, and bytes from all over it are read; of one on the Hub, which
    its name pins to a commit, the first ones.
    """
    reader, digest = Reader(), hashlib.sha256()
    try:
        for at, nbytes in _samples(file):
            buffer = bytearray(nbytes)
            reader.read(file, at, memoryview(buffer))
            digest.update(buffer)
    finally:
        reader.close()
    return digest.hexdigest()


def _samples(file: File) -> list[tuple[int, int]]:
    if file.remote:
        return [(0, min(file.size, HEAD_ON_HUB))]
    ends = [max(0, file.size - SAMPLE) * i // SAMPLES for i in range(1, SAMPLES + 1)]
    return [(0, min(file.size, HEAD)), *((at, min(SAMPLE, file.size - at)) for at in ends)]


def faults(fit: Fit, node: str) -> list[str]:
    """What keeps this machine, `node` for Ray, from working for a run, one line each; none where it is fit."""
    kind = arithmetic_identity() if fit.arithmetic else ""
    found = [] if kind == fit.arithmetic else [f"it computes with `{kind}`, this machine with `{fit.arithmetic}`"]
    for file, expected in fit.files.items():
        try:
            what = "" if seen(file) == expected else "it holds other bytes there"
        except SurgeryError as error:
            what = error.what
        found += [f"it does not see {file.path} as this machine does: {what}"] if what else []
    return [*found, *_cannot_write(fit, node)]


def _cannot_write(fit: Fit, node: str) -> list[str]:
    """Why the folder of the run is not the driver's here, or cannot be written; else the driver finds a file there."""
    try:
        with open(await_file(os.path.join(fit.folder, DRIVER)), "rb") as stream:
            if stream.read() != fit.token.encode():
                return [f"{fit.folder} is another folder there"]
        inside = Inside(fit.folder)
        try:
            fd = inside.create(f"{node}.proof")
            try:
                write_at(fd, memoryview(proof_of(fit, node)), 0)
                os.fsync(fd)
            finally:
                os.close(fd)
        finally:
            inside.close()
    except OSError as error:
        return [f"it cannot write the stage, {fit.folder}: {error.strerror}"]
    return []


def proof_of(fit: Fit, node: str) -> bytes:
    """What a machine writes to show that it can."""
    return f"{fit.token} {node}".encode()


def await_file(path: str) -> str:
    """The path, once something is there: what another machine makes may show late. After some seconds, all the
    same.
    """
    until = time.monotonic() + SEEN_WITHIN
    while not os.path.exists(path) and os.path.isdir(os.path.dirname(path)) and time.monotonic() < until:
        time.sleep(0.05)
    return path


def prove(asked: bytes, node: str) -> list[str]:
    """The faults of this machine for a run whose `Fit` is pickled in `asked`."""
    return faults(pickle.loads(asked), node)


def name_of(node: str, host: str) -> str:
    """What a machine is called in messages: there may be several nodes on one."""
    return f"node {node[:8]} on {host}"


def work(asked: bytes, node: str) -> Outcome:
    """Make the shards of the `Job` pickled in `asked`, in a folder of their own. What of earlier attempts at it is
    there goes.
    """
    name = name_of(node, socket.gethostname())
    try:
        job: Job = pickle.loads(asked)
    except (ImportError, AttributeError) as error:
        what = f"what the plan is made of cannot be loaded: {error}"
        return Outcome(error=SurgeryError(what, where=[name], help="install it on each node"))
    try:
        wrong = [] if node in job.proven else [f"{name}: {fault}" for fault in faults(job.fit, node)]
        return Outcome(error=unfit(wrong)) if wrong else _made(job)
    except SurgeryError as error:
        return Outcome(error=_there(error, name))
    except OSError as error:
        return Outcome(error=_there(as_ours(error, job.fit.folder), name))


def unfit(wrong: Sequence[str]) -> SurgeryError:
    """The error where machines of the cluster cannot do what this one can."""
    return SurgeryError(
        "not every node of the Ray cluster can work for this run",
        where=listed(wrong),
        help="each node needs the sources and the output's folder under the same path, of the same content, and the "
        "same versions of Python, surgery and torch, on CPUs of one kind where something is computed",
    )


def _there(error: SurgeryError, name: str) -> SurgeryError:
    return type(error)(error.what, where=(*error.where, f"on {name}"), help=error.help)


def _made(job: Job) -> Outcome:
    """The shards, in a folder of this attempt. Raises OSError where the run's folder is gone: the run has ended."""
    attempt, run = f"{job.number}-{uuid.uuid4().hex}", Inside(job.fit.folder)
    try:
        for old in os.listdir(run.fd):
            if old.startswith(f"{job.number}-") and not old.endswith(STEPS):
                run.empty(old)
        os.mkdir(attempt, dir_fd=run.fd)
        inside, told = Inside(run.at(attempt)), Told(run, attempt)
        try:
            sharing = sharing_of(job.reflink, files_in(job.shards), inside)
            losses = _filled(job, inside, told, sharing)
        finally:
            inside.close()
        told.flush()
    finally:
        run.close()
    return Outcome(attempt, tuple(told.finished), losses, sharing.done)


def files_in(shards: Sequence[ShardPlan]) -> set[File]:
    """Every file that is read while the shards are made, but for those that the run makes."""
    made = {SCRATCH, *(written(shard.name) for shard in shards)}
    found = {tensor.file for tensor in parts_of(shards) if isinstance(tensor, Stored)}
    return {file for file in found if file.path not in made}


def functions_in(shards: Sequence[ShardPlan]) -> list[Function]:
    """The user's own functions by which the shards are made."""
    rules = (tensor.rule for tensor in parts_of(shards) if isinstance(tensor, Rowwise))
    return [rule for rule in rules if isinstance(rule, Function)]


def parts_of(shards: Sequence[ShardPlan]) -> Iterator[Tensor]:
    """All that the shards, and their records, are made of: each once."""
    waiting, known = list(_tensors(shards)), dict[int, Tensor]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in known:
            known[id(tensor)] = tensor
            waiting += children(tensor)
            yield tensor


def _tensors(shards: Sequence[ShardPlan]) -> Iterator[Tensor]:
    for shard in shards:
        yield from (slot.tensor for slot in shard.slots)
        yield from shard.sidecar.fixed.values() if shard.sidecar else ()
        for kept in (*shard.lone, *(slot.kept for slot in shard.slots if slot.kept)):
            yield kept.original
            yield from [kept.predicted] if kept.predicted is not None else []


def _filled(job: Job, inside: Inside, told: Callable[[Step], None], sharing: Sharing) -> dict[str, Loss]:
    """Make the shards of the job `inside` a folder, as a run on one machine does in its stage."""
    own = {written(shard.name): inside.at(part_of(shard.name)) for shard in job.shards if shard.sidecar}
    space = partial(workspace_of, job.budget, {**job.aliases, **own})
    with exact() if job.fit.arithmetic else nullcontext():
        crew = Crew(job.shards, inside, space, told, scratch=False, check_all=job.check_all, sharing=sharing)
        return crew.run(job.threads)


class Told:
    """What a worker reports: appended to a file in the folder of the run, which the driver reads. Closed each time,
    since on file systems of a network only then others see it.
    """

    def __init__(self, run: Inside, attempt: str) -> None:
        self.run, self.name, self.at, self.last = run, f"{attempt}{STEPS}", 0, 0.0
        self.waiting: list[bytes] = []
        self.finished: list[str] = []

    def __call__(self, step: Step) -> None:
        if step.kind == "finished":
            self.finished.append(step.name)
            return
        self.waiting.append(json.dumps(asdict(step)).encode() + b"\n")
        if time.monotonic() - self.last > TOLD_EVERY:
            self.flush()

    def flush(self) -> None:
        """All that was reported can be read."""
        data, self.waiting, self.last = b"".join(self.waiting), [], time.monotonic()
        fd = self.run.reopen(self.name)
        try:
            write_at(fd, memoryview(data), self.at)
        finally:
            os.close(fd)
        self.at += len(data)
