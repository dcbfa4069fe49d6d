"""A run on a Ray cluster: the driver hands shards to the nodes, takes what they made into the stage, and publishes.

What is made, and how, is what a run on one machine does: a node runs a crew. Where and when, and again after a death,
is Ray's: a task asks for cores and memory, and is retried. Before any shard, each node proves that it is fit
(`node.py`). All that nodes write lies in one folder of the stage, which is gone when `Nodes` are closed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from ..errors import SurgeryError, listed
from ..evaluation.arithmetic import arithmetic_identity
from ..evaluation.losses import Loss
from ..evaluation.scratch import SCRATCH
from ..evaluation.spool import is_spooled
from ..lazy.tensor import File
from ..planning.steps import ShardPlan
from .crew import FILL_CHUNK, Delivery, Step, compare, files_of
from .node import (
    DRIVER,
    STEPS,
    TOLD_EVERY,
    Fit,
    Job,
    Outcome,
    await_file,
    files_in,
    functions_in,
    proof_of,
    seen,
    unfit,
)
from .ray import Node, at_node, connected, failed, nodes_of, pickled, tasks
from .reflinks import Sharing
from .stage import write_at
from .writing_inside import PARTS, Inside, part_of

PROCESS = 400 << 20  # bytes of a worker besides its buffers, torch among them
ANSWER = 120.0  # seconds within which a node must have proved itself
LOOK, ALONE = 5.0, 60.0  # seconds between two looks for nodes, and after which a run without one ends
TASKS_PER_PLACE = 4  # so many tasks as workers fit on the cluster keep all of them at work to the end
LEAST = FILL_CHUNK  # bytes that are worth a task
RETRIES = 3  # of a task whose worker died


EXECUTORS = ("local", "ray")


def check_executor(executor: str, address: str) -> None:
    """Raises SurgeryError for what is no executor, and for an address of what has none."""
    if executor not in EXECUTORS:
        raise SurgeryError(f"`{executor}` is no executor", help=f"pass --executor {' or '.join(EXECUTORS)}")
    if address and executor != "ray":
        raise SurgeryError(f"{address} is the address of a Ray cluster", help="pass --executor ray with --address")


class Nodes:
    """The nodes of a cluster at work for one run. `close` ends all work, and takes away the folder in which it was
    done.
    """

    def __init__(
        self,
        ray: Any,
        inside: Inside,
        shards: Sequence[ShardPlan],
        share: tuple[int, int],
        places: int,
        *,
        arithmetic: bool,
    ) -> None:
        self.ray, self.inside, self.shards, self.share, self.places = ray, inside, shards, share, places
        self.token = uuid.uuid4().hex
        self.folder = part_of(self.token, "nodes")
        self.running: dict[Any, tuple[ShardPlan, ...]] = {}
        self.task, self.versions = tasks(ray)
        self.aliases = {SCRATCH: inside.at(part_of(SCRATCH, "scratch"))}
        self.fit = Fit(
            inside.at(self.folder),
            self.token,
            {file: seen(file) for file in to_be_seen(files_in(shards))},
            arithmetic_identity() if arithmetic else "",
        )
        self.proven = frozenset[str]()
        self.looked = self.able = time.monotonic()  # when nodes were looked for, and when one was there
        self.told, self.read = Counter[str](), Counter[str]()

    def prove(self, nodes: Sequence[Node]) -> None:
        """Each of the nodes is fit for this run. Raises SurgeryError, naming what is not, and why."""
        self._write(DRIVER, self.token.encode())
        asked = pickled(self.ray, self.fit, ())
        proofs = {
            self.task.options(**at_node(self.ray, node)).remote("prove", asked, self.versions): node for node in nodes
        }
        ready, late = self.ray.wait([*proofs], num_returns=len(proofs), timeout=ANSWER)
        wrong = [f"{proofs[ref].name}: no answer in {ANSWER:.0f} seconds" for ref in late]
        for ref in ready:
            wrong += [f"{proofs[ref].name}: {fault}" for fault in self._faults(ref, proofs[ref])]
        if wrong:
            raise unfit(wrong)
        self.proven = frozenset(node.id for node in nodes)

    def _faults(self, proof: Any, node: Node) -> list[str]:
        try:
            differ, found = self.ray.get(proof)
        except self.ray.exceptions.RayError as error:
            return [f"it did not answer: {failed(self.ray, error, (), 0).what}"]
        if differ or found:
            return [*differ, *(found or ())]
        try:
            with open(await_file(self.inside.at(f"{self.folder}/{node.id}.proof")), "rb") as stream:
                same = stream.read() == proof_of(self.fit, node.id)
        except OSError:
            same = False
        return [] if same else [f"what it writes to the stage, {self.fit.folder}, does not show here"]

    def run(
        self, emit: Callable[[Step], None], delivery: Delivery | None, sharing: Sharing, *, check_all: bool
    ) -> dict[str, Loss]:
        """Make all shards, and take them into the stage: what rounding did, by tensor, is returned. Raises the first
        error of a node, and SurgeryError where workers die again and again.
        """
        self._share_spooled()
        room = delivery.room if delivery else len(self.shards)
        groups = [(one,) for one in self.shards] if delivery else divided(self.shards, self.places)
        # all at once, so that what cannot be sent is refused before work
        asked = [self._job(number, group, sharing.mode, check_all=check_all) for number, group in enumerate(groups)]
        waiting = deque(zip(groups, asked, strict=True))
        losses = dict[str, Loss]()
        while waiting or self.running:
            while waiting and sum(map(len, self.running.values())) + len(waiting[0][0]) <= room:
                self._begin(*waiting.popleft())
            done, _ = self.ray.wait([*self.running], timeout=TOLD_EVERY)
            self._check_there(done)
            self._tell(emit)
            for ref in done:
                shards = self.running.pop(ref)
                outcome = self._outcome(ref, shards)
                losses |= outcome.losses
                sharing.add(*outcome.shared)
                for shard in (shard for shard in shards if shard.name in outcome.made):
                    self._take(shard, outcome.attempt, emit)
                    if delivery:
                        delivery.deliver(files_of(shard))
                        emit(Step("sent", shard.name, shard.nbytes))
        return losses

    def _job(self, number: int, shards: tuple[ShardPlan, ...], reflink: str, *, check_all: bool) -> bytes:
        threads, budget = self.share
        job = Job(number, shards, self.fit, self.proven, self.aliases, threads, budget, reflink, check_all)
        return pickled(self.ray, job, [function.call for function in functions_in(shards)])

    def _begin(self, shards: tuple[ShardPlan, ...], asked: bytes) -> None:
        needs = {"num_cpus": self.share[0], "memory": needed(self.share), "max_retries": RETRIES}
        self.running[self.task.options(**needs).remote("work", asked, self.versions)] = shards

    def _check_there(self, done: Sequence[Any]) -> None:
        """Raise SurgeryError where for long no node has been there that could do what is to be done: Ray waits for
        one.
        """
        now = time.monotonic()
        if done or now < self.looked + LOOK:
            return
        self.looked, there = now, nodes_of(self.ray)
        if any(_places(node, self.share) for node in there):
            self.able = now
        elif now > self.able + ALONE:
            raise _too_small(there, self.share)

    def _outcome(self, ref: Any, shards: Sequence[ShardPlan]) -> Outcome:
        names = listed([shard.name for shard in shards])
        try:
            differ, outcome = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            raise failed(self.ray, error, names, RETRIES) from error
        if differ:
            raise unfit(differ)
        if outcome.error:
            raise outcome.error
        return outcome

    def _take(self, shard: ShardPlan, attempt: str, emit: Callable[[Step], None]) -> None:
        """The shard, and before it its record, has its name in the stage; it is what was planned."""
        for name in files_of(shard):
            made = f"{self.folder}/{attempt}/{name}"
            path = await_file(self.inside.at(made))
            if name == shard.name:
                compare(path, shard)
            self.inside.rename(made, name)
        if (late := shard.nbytes - self.told[shard.name]) > 0:
            emit(Step("filled", shard.name, late))
        self.told[shard.name] = shard.nbytes
        emit(Step("finished", shard.name))

    def _tell(self, emit: Callable[[Step], None]) -> None:
        """Hand on what workers have reported since; bytes that are made again after a death count once."""
        sizes = {shard.name: shard.nbytes for shard in self.shards}
        for name in sorted(os.listdir(self.fit.folder)):
            for step in self._new_steps(name) if name.endswith(STEPS) else ():
                nbytes = min(step.nbytes, sizes[step.name] - self.told[step.name])
                self.told[step.name] += nbytes
                if nbytes or not step.nbytes:
                    emit(replace(step, nbytes=nbytes))

    def _new_steps(self, name: str) -> list[Step]:
        with open(os.path.join(self.fit.folder, name), "rb") as stream:
            stream.seek(self.read[name])
            whole = stream.read().rpartition(b"\n")[0]
        self.read[name] += len(whole) + bool(whole)
        return [Step(**json.loads(line)) for line in whole.splitlines()]

    def _share_spooled(self) -> None:
        """What surgeries computed before lies in the stage, where nodes see it."""
        for file in {file for file in files_in(self.shards) if is_spooled(file)}:
            name = part_of(str(len(self.aliases)), "spooled")
            with open(file.path, "rb") as source, open(self.inside.create(name), "wb") as copy:
                shutil.copyfileobj(source, copy)
                copy.flush()
                os.fsync(copy.fileno())
            self.aliases[file.path] = self.inside.at(name)

    def _write(self, name: str, data: bytes) -> None:
        fd = self.inside.create(f"{self.folder}/{name}")
        try:
            write_at(fd, memoryview(data), 0)
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """No worker is at work, and what one that is only thought dead still does comes to nothing."""
        for ref in self.running:
            with suppress(Exception):  # of a cluster that is gone
                self.ray.cancel(ref, force=True)
        self.inside.empty(self.folder)


@contextmanager
def nodes(
    address: str,
    inside: Inside,
    shards: Sequence[ShardPlan],
    share: Callable[[int], tuple[int, int]],
    workers: int | None,
    *,
    arithmetic: bool,
) -> Iterator[Nodes]:
    """The nodes of the cluster at `address`, each of which is fit to make the shards. Raises SurgeryError where one is
    not, and leaves nothing then.
    """
    try:
        with connected(address) as ray:
            there = nodes_of(ray)
            each = share(workers or max(1, int(min((node.cpus for node in there), default=1))))
            able = [node for node in there if _places(node, each)]
            if not able:
                raise _too_small(there, each)
            crew = Nodes(ray, inside, shards, each, sum(_places(node, each) for node in able), arithmetic=arithmetic)
            try:
                crew.prove(able)
                yield crew
            finally:
                crew.close()
    finally:
        _forget_empty(inside)


def _forget_empty(inside: Inside) -> None:
    """No folder is left for parts where there are none, and no stage where nothing was made."""
    for path in (f"{PARTS}/nodes", PARTS, ".surgery", ""):
        with suppress(OSError):
            os.rmdir(inside.at(path))


def _places(node: Node, share: tuple[int, int]) -> int:
    """How many workers with such a share a node has room for."""
    return int(min(node.cpus // share[0], node.memory // needed(share)))


def needed(share: tuple[int, int]) -> int:
    """Bytes that a worker of so many threads, each with so many bytes of buffers, asks Ray for."""
    return PROCESS + share[0] * share[1]


def _too_small(there: Sequence[Node], share: tuple[int, int]) -> SurgeryError:
    has = [f"{node.name}: {node.cpus:g} cores, {node.memory / 1e6:.0f} MB" for node in there]
    return SurgeryError(
        f"no node of the Ray cluster has {share[0]} cores and {needed(share) / 1e6:.0f} MB for a worker",
        where=listed(has) if has else ["no node with cores is alive"],
        help="pass fewer --workers, or a smaller --memory: both are of each worker",
    )


def divided(shards: Sequence[ShardPlan], places: int) -> list[tuple[ShardPlan, ...]]:
    """The shards in groups of about the same bytes, some for each place, so that none waits long for another at the
    end; the largest first.
    """
    goal = max(LEAST, sum(shard.nbytes for shard in shards) // (places * TASKS_PER_PLACE))
    groups, held = [list[ShardPlan]()], 0
    for shard in shards:
        if groups[-1] and held + shard.nbytes > goal:
            groups.append([])
            held = 0
        groups[-1].append(shard)
        held += shard.nbytes
    return sorted(map(tuple, groups), key=lambda group: -sum(shard.nbytes for shard in group))


def to_be_seen(files: Collection[File]) -> list[File]:
    """The files that a node must show that it sees: all that are local, and one of each repository on the Hub."""
    remote = {file.path.rpartition("/")[0]: file for file in sorted(files, key=lambda f: f.path) if file.remote}
    return [*(file for file in files if not file.remote and not is_spooled(file)), *remote.values()]
