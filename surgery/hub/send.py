"""Carry out a push: files ahead, then one commit that names its parent, then a look at what arrived."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import HubConflict, HubError, SourceChanged, listed, public, series
from ..lazy.tensor import File
from ..opened import takes_opened
from . import client
from .client import retried, translated
from .comparison import compared
from .content import LARGE, MAIN, Item, Local, PushPlan, PushReport, Remote, Sent
from .repository import check_tag, head_of, refs_of, tree_of

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi


@takes_opened
def execute_push(plan: PushPlan, *, on_file: Callable[[str, int], None] | None = None) -> PushReport:
    """Carry out a plan; the repository holds all of it when this returns, and holds none of it if this raises before
    its commit.

    `on_file` is called with the path and the bytes of each file that has arrived. Raises HubError, SourceChanged.
    """
    begun, api = time.monotonic(), client.api()
    commit, pull = plan.parent, ""
    if not plan.empty or plan.new_branch:
        plan = prepared(api, plan)
        commit = plan.parent
    if not plan.empty:
        with silent_bars():
            operations = _sent(api, plan, on_file or (lambda path, nbytes: None))
            commit, pull = _committed(api, plan, operations)
        _check_arrived(api, plan, pull_ref(pull) or commit)
    if plan.tag:
        _tagged(api, plan, commit)
    return PushReport(
        repo_id=plan.repo_id,
        revision=plan.revision,
        commit=commit,
        url=public(f"{api.endpoint}/{plan.repo_id}/commit/{commit}"),
        pull_request=public(pull),
        tag=plan.tag,
        sent=_paths(plan.send),
        copied=_paths(plan.copy),
        there=_paths(plan.there),
        deleted=_paths(plan.delete),
        kept=_paths(plan.keep),
        nbytes=plan.nbytes,
        seconds=time.monotonic() - begun,
        notes=plan.notes,
    )


def _paths(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(item.path for item in items)


def pull_ref(url: str) -> str:
    """The revision that a pull request's address stands for; "" for none."""
    return f"refs/pr/{url.rstrip('/').rsplit('/', 1)[-1]}" if url else ""


def prepared(api: HfApi, plan: PushPlan) -> PushPlan:
    """The plan with its repository and its branch there. One that came to be meanwhile is looked at again."""
    where = [plan.repo_id]
    if not plan.parent:
        with_repo = f"make the repository {plan.repo_id}"
        retried(lambda: api.create_repo(plan.repo_id, private=plan.private, exist_ok=True), with_repo, where)
        head = head_of(api, plan.repo_id, MAIN)
        plan = compared(plan, head, tree_of(api, plan.repo_id, head))
        plan = replace(plan, new_branch=plan.revision != MAIN)
    if plan.new_branch:
        _make_branch(api, plan, where)
    return plan


def _make_branch(api: HfApi, plan: PushPlan, where: Sequence[str]) -> None:
    """The branch of the plan, from the commit that the plan builds on."""

    def make() -> None:
        api.create_branch(plan.repo_id, branch=plan.revision, revision=plan.parent, exist_ok=True)

    retried(make, f"make the branch {plan.revision}", where)


def _sent(api: HfApi, plan: PushPlan, on_file: Callable[[str, int], None]) -> list[Any]:
    """What the commit is to do, with all new content sent ahead: large files one by one, then the rest together."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

    def operation(item: Item) -> CommitOperationAdd:
        source = plan.files[item.path].source
        if isinstance(source, Sent):
            return source.operation
        return CommitOperationAdd(item.path, source.path if isinstance(source, File) else source)

    large = [item for item in plan.send if item.nbytes >= LARGE]
    small = [item for item in plan.send if item.nbytes < LARGE]
    done = []
    for items in (*([item] for item in large), *([small] if small else [])):
        operations = [operation(item) for item in items]
        preuploaded(api, plan, operations, free_memory=False)
        for item in items:
            _check_unchanged(plan.files[item.path])
            on_file(item.path, item.nbytes)
        done += operations
    copies = [CommitOperationCopy(item.source, item.path, src_revision=plan.parent) for item in plan.copy]
    return [*done, *copies, *(CommitOperationDelete(item.path, is_folder=False) for item in plan.delete)]


def preuploaded(api: HfApi, plan: PushPlan, operations: Sequence[CommitOperationAdd], *, free_memory: bool) -> None:
    """The content of these files is on the Hub, uncommitted, unless it is small enough to travel in the commit itself.

    With `free_memory`, an operation whose content is there has b"" in its place.
    """
    for operation in operations:
        local = plan.files.get(operation.path_in_repo)
        if local and "sha256" in local.__dict__:  # known from the comparison: not read again for it
            operation.upload_info.sha256 = bytes.fromhex(local.sha256)
    names = [operation.path_in_repo for operation in operations]
    with translated(f"send {series(listed(names, 2))}", [plan.repo_id]):
        api.preupload_lfs_files(
            plan.repo_id, operations, revision=plan.revision, create_pr=plan.create_pr, free_memory=free_memory
        )
    # The client would leave such files out of the commit in silence; no public attribute tells them.
    if left := [operation.path_in_repo for operation in operations if getattr(operation, "_should_ignore", False)]:
        tip = "change .gitignore, or remove the files from the folder"
        raise HubError(
            ".gitignore leaves out files that are to be pushed", where=[plan.repo_id, *listed(left)], help=tip
        )


def _check_unchanged(local: Local) -> None:
    if isinstance(local.source, File):
        path = local.source.path
        status = os.stat(path)
        if (status.st_size, status.st_mtime_ns) != (local.source.size, local.source.mtime_ns):
            raise SourceChanged(
                "the file changed while it was being sent", where=[path], help="run again when nothing writes to it"
            )


def _committed(api: HfApi, plan: PushPlan, operations: Sequence[Any]) -> tuple[str, str]:
    """The commit, and the address of its pull request. Made once, whatever happens to the answers."""
    pulls = _pulls(api, plan)
    for attempt in range(client.TRIES):
        try:
            with translated(f"commit to {plan.revision}", [plan.repo_id]):
                info = api.create_commit(
                    plan.repo_id,
                    operations,
                    commit_message=plan.message,
                    revision=plan.revision,
                    create_pr=plan.create_pr,
                    parent_commit=plan.parent,
                )
            return info.oid, info.pr_url or ""
        except HubError as error:
            if client.status_of(error.__cause__) not in (None, 409, 412, *client.TRANSIENT):
                raise  # an answer that says no: nothing was made
            if found := _found(api, plan, pulls, error):
                return found
            if attempt == client.TRIES - 1 or not client.is_transient(error.__cause__):
                raise
            client.rest(error.__cause__, attempt)
    raise AssertionError("unreachable")


def _pulls(api: HfApi, plan: PushPlan) -> set[str]:
    """The pull requests that are there before ours."""
    return {ref for ref in refs_of(api, plan.repo_id) if ref.startswith("refs/pr/")} if plan.create_pr else set()


def _found(api: HfApi, plan: PushPlan, pulls: set[str], error: HubError) -> tuple[str, str] | None:
    """Our commit, if it was made in spite of the error; None where it can be tried again. Raises HubConflict where
    it cannot.
    """
    try:
        if not (found := _landed(api, plan, pulls)):
            _check_unmoved(api, plan, error)
        return found
    except HubConflict:
        raise
    except HubError as blind:
        raise type(error)(
            f"{error.what}; and cannot tell whether the commit was made",
            where=[*error.where, blind.what],
            help="run the same command again: it looks first, and makes no second commit",
        ) from error.__cause__


def _landed(api: HfApi, plan: PushPlan, pulls: set[str]) -> tuple[str, str] | None:
    """The commit that holds what we sent, if one was made on our parent since; None otherwise.

    Our commit can only be a child of the parent that it names, so the first one after it, or a new pull request's,
    is ours or none.
    """
    if plan.create_pr:
        new = {
            ref: sha
            for ref, sha in refs_of(api, plan.repo_id).items()
            if ref.startswith("refs/pr/") and ref not in pulls
        }
        found = [(sha, ref) for ref, sha in new.items() if not _differing(plan, tree_of(api, plan.repo_id, sha))]
        return (
            (found[0][0], f"{api.endpoint}/{plan.repo_id}/discussions/{found[0][1].rsplit('/', 1)[-1]}")
            if found
            else None
        )
    since = _since(api, plan)
    if not since:
        return None
    first = since[-1].commit_id
    return None if _differing(plan, tree_of(api, plan.repo_id, first)) else (first, "")


def _since(api: HfApi, plan: PushPlan) -> list[Any]:
    """The branch's commits after our parent, newest first."""
    with translated("read the history", [f"{plan.repo_id}@{plan.revision}"]):
        commits = api.list_repo_commits(plan.repo_id, revision=plan.revision)
    ids = [commit.commit_id for commit in commits]
    return commits[: ids.index(plan.parent)] if plan.parent in ids else commits


def _differing(plan: PushPlan, tree: Mapping[str, Remote]) -> list[str]:
    """Files that `tree` does not hold as the plan wants them."""
    wrong = [path for path, local in plan.files.items() if path not in tree or not tree[path].holds(local)]
    wrong += [item.path for item in plan.delete if item.path in tree]
    return wrong + [item.path for item in plan.keep if tree.get(item.path) != plan.remote[item.path]]


def _check_unmoved(api: HfApi, plan: PushPlan, error: HubError) -> None:
    """Raise HubConflict, with what changed, where someone else's commit is on top of our parent."""
    since = _since(api, plan)
    if not since:
        return
    now = tree_of(api, plan.repo_id, since[0].commit_id)
    changed = sorted(path for path in {*now, *plan.remote} if now.get(path) != plan.remote.get(path))
    rows = [f"{commit.commit_id[:8]} {series(commit.authors)}: {commit.title}" for commit in since]
    raise HubConflict(
        f"someone else committed to {plan.revision} meanwhile, and nothing was changed by this push",
        where=[plan.repo_id, *listed(rows), f"changed there: {series(listed(changed))}"],
        help="look at it, then run the same command again: what was sent already is not sent again",
    ) from error.__cause__


def _check_arrived(api: HfApi, plan: PushPlan, revision: str) -> None:
    """What the commit holds is what was to be there, by hash."""
    if wrong := _differing(plan, tree_of(api, plan.repo_id, revision, "look at the commit, which was made")):
        raise HubError(
            f"{len(wrong)} files are not on the Hub as they were sent",
            where=[f"{plan.repo_id}@{revision}", *listed(wrong)],
            help="run the same command again when nothing writes to the folder",
        )


def _tagged(api: HfApi, plan: PushPlan, commit: str) -> None:
    """The tag names the commit. One that does so already is fine: it may be our own, whose answer was lost."""
    doing, where = f"tag {commit[:8]} as {plan.tag}", [plan.repo_id, f"the commit {commit} was made"]
    retried(lambda: api.create_tag(plan.repo_id, tag=plan.tag, revision=commit, exist_ok=True), doing, where)
    check_tag(api, plan, commit)


@contextmanager
def silent_bars() -> Iterator[None]:
    """The client's own progress bars are off inside."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
