"""Straight to the Hub: each finished shard is sent ahead and leaves the disk, and one commit at the end makes all
visible.

Nothing shows in the repository before that commit, which is made as that of a push is, under the parent that was
read before the first byte: a commit of someone else's meanwhile is an error, never overwritten. What was sent is
written to a journal in the stage; the next run of the same plan asks the Hub by hash what it still has, and makes
and sends the rest.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..checks.verify import verify
from ..errors import DestinationError, HubError, SurgeryError, listed
from ..execution.crew import files_of
from ..execution.stage import edited_since, stage_at
from ..files.card import CARD
from ..files.edited import edited
from ..files.folder import Folder, LocalFolder
from ..files.manifest import Manifest, read_manifest
from ..files.refs import HubRef
from ..opened import takes_opened
from . import client, resume
from .comparison import of_another_model, weights_in, with_others
from .content import Item, Local, PushPlan, PushReport, Sent
from .push import looked, with_files
from .remote import open_remote
from .resume import Entry, stage_of
from .send import execute_push, prepared, preuploaded, silent_bars

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

    from ..execution.writing_inside import Inside
    from ..planning.plan import Plan

HERE = (".json", ".md", ".undo")  # what is checked and completed before the commit stays here until then


@dataclass(frozen=True, slots=True)
class HubDestination:
    """A repository as the place of an output: `repo` is `hf://org/name` or `org/name`, either with `@branch`.

    `private`, `create_pr`, `message`, `tag` and `keep` are as for `plan_push`. At most `stage_shards` shards are on
    the disk at a time, in the folder `stage`, or where the Hub's client has its files (HF_HOME); with 2, one is sent
    while the next is made.
    """

    repo: str
    private: bool | None = None
    create_pr: bool = False
    message: str = ""
    tag: str = ""
    keep: bool = False
    stage: str | None = None
    stage_shards: int = 1


def deliver_to(
    dest: str | os.PathLike[str] | HubDestination, plan: Plan, *, overwrite: bool, discard_edits: bool = False
) -> Streamed:
    """The delivery of `plan` to a repository, which is only looked at. Raises DestinationError where it holds
    weights, HubError.
    """
    goal = dest if isinstance(dest, HubDestination) else HubDestination(os.fspath(dest))
    if goal.stage_shards < 1:
        raise SurgeryError(f"{goal.stage_shards} shards in the stage are too few", help="pass --stage-shards 1 or more")
    return Streamed(goal, plan, _looked(goal, plan, overwrite=overwrite, discard_edits=discard_edits))


@takes_opened
def preview(
    plan: Plan, dest: str | os.PathLike[str] | HubDestination, *, overwrite: bool = False, discard_edits: bool = False
) -> PushPlan:
    """What carrying out `plan` at `dest` would send, delete and keep there; nothing is made or changed.

    Everything counts as sent, since what the Hub has of it already shows when it is made. Raises as `deliver_to` does.
    """
    push = deliver_to(dest, plan, overwrite=overwrite, discard_edits=discard_edits).push
    sizes = {s.name: s.nbytes for s in plan.shards} | {
        p: len(f) if isinstance(f, bytes) else f.size for p, f in plan.files.items()
    }
    card = () if CARD in sizes else (CARD,)
    told = f"{CARD}, the model card, is written, or completed where there is one"
    files = {path: Local(content) for path, content in plan.files.items()}
    notes = (told, *of_another_model(client.api(), push, files))
    push = replace(push, send=tuple(Item(path, nbytes) for path, nbytes in sorted(sizes.items())), notes=notes)
    return with_others(push, [*sizes, *card])


def _looked(goal: HubDestination, plan: Plan, *, overwrite: bool, discard_edits: bool) -> PushPlan:
    """What the repository holds; refused where that is weights which nobody said to replace."""
    push = looked(
        client.api(),
        goal.repo,
        private=goal.private,
        revision=None,
        create_pr=goal.create_pr,
        message=goal.message,
        tag=goal.tag,
        keep=goal.keep,
    )
    _check_replaceable(
        push,
        plan,
        stage_at(stage_of(goal.repo, goal.stage), plan.identity),
        overwrite=overwrite,
        discard_edits=discard_edits,
    )
    return push


def _is_sent(push: PushPlan, plan: Plan, stage: str) -> bool:
    """Whether the plan's shards are all that the repository has of weights, each as the journal says that it was
    sent.
    """
    entries = resume.read_journal(stage, plan.identity)
    held = {name for name in weights_in(push.remote) if not name.endswith(HERE)}
    return held == {shard.name for shard in plan.shards} and all(
        name in entries and push.remote[name].sha256 == entries[name].sha256 for name in held
    )


def _check_replaceable(push: PushPlan, plan: Plan, stage: str, *, overwrite: bool, discard_edits: bool) -> None:
    """A pull request and a new branch replace nothing; a commit to a branch with weights on it does.

    Unless the weights are just what the journal in `stage` says was sent: then a run died after its commit, and
    nothing is replaced.
    """
    held = weights_in(push.remote)
    if not held or push.create_pr or push.new_branch or (overwrite and discard_edits):
        return
    folder = open_remote(HubRef(push.repo_id, push.parent))[0]
    manifest = read_manifest(folder)
    if overwrite:
        _check_unedited(push, folder, manifest)
        return
    mine = manifest is not None and manifest.identity == plan.identity
    if mine and _is_sent(push, plan, stage):
        return
    ours = ["they are the result of this very command"] if mine else []
    raise DestinationError(
        "the repository holds weights already",
        where=[f"{push.repo_id}@{push.revision}", *listed(held), *ours],
        help=(
            "replace them with --overwrite, the history keeps them; or propose it with --create-pr; or choose another"
            " name with -o"
        ),
    )


def _check_unedited(push: PushPlan, folder: Folder, manifest: Manifest | None) -> None:
    """Raise DestinationError where files that surgery wrote were edited there; the card is completed, never lost."""
    edits = [f"{name}: {what}" for name, what in edited(folder, manifest).items() if name != CARD] if manifest else []
    if edits:
        raise edited_since("the repository", f"{push.repo_id}@{push.revision}", edits)


class Streamed:
    """An output on its way to a repository. See `Delivery` in the executor."""

    def __init__(self, goal: HubDestination, plan: Plan, push: PushPlan) -> None:
        self.plan, self.push, self.room = plan, push, goal.stage_shards
        self.place = stage_of(goal.repo, goal.stage)
        self.stage, self.resumed, self.ready = "", 0, False
        self.inside: Inside
        self.sent: dict[str, Sent] = {}

    def begin(self, stage: Inside) -> None:
        """See `Delivery`. Of what the journal says was sent, the Hub still has what `has` says afterwards."""
        self.inside, self.stage = stage, stage.path
        entries = resume.read_journal(stage.path, self.plan.identity)
        for name in entries:  # it may be here as a file of zeros, or be left from a run that died before removing it
            stage.remove(name)
        self.sent = self._still_there(entries)
        self.resumed = len(self.sent)
        if entries:
            self._note()

    def _still_there(self, entries: dict[str, Entry]) -> dict[str, Sent]:
        if not entries or not self.push.parent:
            return {}
        if why := resume.unsupported():
            note = f"{len(entries)} files that a broken run sent are made again, since they cannot be taken up: {why}"
            self.push = replace(self.push, notes=(*self.push.notes, note))
            return {}
        there = resume.still_there(self.push.repo_id, entries)
        return {n: Sent(entries[n].nbytes, entries[n].sha256, resume.operation(n, entries[n])) for n in there}

    def has(self, name: str) -> bool:
        """See `Delivery`."""
        return name in self.sent

    def deliver(self, names: Sequence[str]) -> None:
        """See `Delivery`. What the Hub wants in the commit itself, as it does small files, stays in the stage."""
        from huggingface_hub import CommitOperationAdd

        self._prepare()
        operations = [
            CommitOperationAdd(name, os.path.join(self.stage, name)) for name in names if not name.endswith(HERE)
        ]
        try:
            with silent_bars():
                preuploaded(client.api(), self.push, operations, free_memory=True)
        except HubError as error:
            where = [
                *error.where,
                f"{self._shards()} of {len(self.plan.shards)} shards are sent; the same command goes on from there",
            ]
            raise type(error)(error.what, where=where, help=error.help) from error
        done = [operation for operation in operations if operation.path_or_fileobj == b""]
        self.sent |= {operation.path_in_repo: self._sent(operation) for operation in done}
        self._note()
        for operation in done:
            self.inside.remove(operation.path_in_repo)

    def _shards(self) -> int:
        return sum(shard.name in self.sent for shard in self.plan.shards)

    def _sent(self, operation: CommitOperationAdd) -> Sent:
        size = os.path.getsize(os.path.join(self.stage, operation.path_in_repo))
        return Sent(size, operation.upload_info.sha256.hex(), operation)

    def _note(self) -> None:
        resume.write_journal(
            self.inside, self.plan.identity, {n: Entry(s.nbytes, s.sha256) for n, s in self.sent.items()}
        )

    def _prepare(self) -> None:
        """The repository and its branch are there."""
        if not self.ready and (not self.push.parent or self.push.new_branch):
            notes = self.push.notes
            self.push = replace(prepared(client.api(), self.push), new_branch=False, notes=notes)
        self.ready = True

    def publish(self) -> PushReport:
        """See `Delivery`. The whole is verified first, as a push verifies a folder: shards that are gone stand there
        as their headers, and their record was proved before they were sent."""
        self._prepare()
        self._hollow()
        verify(self.stage, check_class=False, check_record=False).require()
        names = [*(name for shard in self.plan.shards for name in files_of(shard)), *self.plan.files]
        here = LocalFolder(self.stage)
        files = {name: Local(self.sent.get(name) or here.file(name)) for name in names}
        try:
            report = execute_push(with_files(client.api(), self.push, self.stage, files))
        except HubError as error:
            if not self.resumed or client.status_of(error.__cause__) != 400:
                raise
            tip = f"if the Hub has lost what an earlier run sent, begin anew: surgery clean {self.place}"
            raise type(error)(error.what, where=error.where, help=tip) from error
        shutil.rmtree(self.stage)
        return report

    def _hollow(self) -> None:
        """In the place of each file that left is one of its size, with its header, which takes no room. `begin`
        removes them.
        """
        headers = {shard.name: shard.header for shard in self.plan.shards}
        for name, sent in self.sent.items():
            with open(self.inside.create(name), "wb") as stream:
                stream.write(headers.get(name, b""))
                stream.truncate(sent.nbytes)
