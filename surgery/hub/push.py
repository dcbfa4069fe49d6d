"""Push: a folder becomes one commit of a repository on the Hub.

`plan_push` only looks: what the Hub has already, by hash, stays there; what is new or changed is sent; shards and an
index of the same weights that are not in the folder are stale, and deleted in the same commit. `execute_push` sends
the files ahead, large ones one by one, and then makes the commit, which names its parent: so nothing is visible
before all of it is, and nothing is made twice. Where the answer to the commit is lost, the repository's history says
whether it was made.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..checks.verify import verify
from ..errors import FormatError, HubError, NotACheckpoint, NotAllowed, PlanError, SurgeryError, listed
from ..files.card import CARD, metadata_of
from ..files.folder import LocalFolder, absolute
from ..files.manifest import MANIFEST
from ..files.paths import faults_in
from ..files.refs import SCHEME, has_scheme, is_ref, parse_ref
from ..opened import takes_opened
from . import client
from .accepted_card import accepted, check_card
from .card import Origins, completed, is_ours, origins, written
from .client import retried
from .comparison import compared, of_another_model
from .content import MAIN, Local, PushPlan, PushReport, raw_of
from .repository import about_repository, check_tag, head_of, remote_file, tree_of
from .send import execute_push

if TYPE_CHECKING:
    from huggingface_hub import HfApi


NEVER_SENT = (".git", ".cache")  # the Hub takes no files in such folders
_NAMES = "org/name: letters, digits and -_. with no -- and no .., and neither of the two begins or ends with - or ."


@takes_opened
def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "",
    tag: str = "",
    keep: bool = False,
    on_file: Callable[[str, int], None] | None = None,
) -> PushReport:
    """Make the model or adapter in `folder` one commit of `repo_id`: `plan_push`, then `execute_push`."""
    plan = plan_push(
        folder, repo_id, private=private, revision=revision, create_pr=create_pr, message=message, tag=tag, keep=keep
    )
    return execute_push(plan, on_file=on_file)


@takes_opened
def plan_push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "",
    tag: str = "",
    keep: bool = False,
) -> PushPlan:
    """What a push of `folder` would do; nothing is sent, made or changed.

    The folder is verified first: headers, index and files have to agree. `private` says how the repository is made
    if it is not there; with True, one that is public is refused. `revision` is a branch, made from main if it is not
    there. With `keep`, nothing is deleted. Raises VerificationFailed, NotACheckpoint, HubError.
    """
    path = absolute(folder)
    if not os.path.lexists(path):
        raise _no_folder(os.fspath(folder), path)
    if not os.path.isdir(path):
        raise NotACheckpoint("a folder is pushed", where=[path], help="pass the folder of the model or adapter")
    verify(path, check_class=False).require()
    api = client.api()
    plan = looked(
        api, repo_id, private=private, revision=revision, create_pr=create_pr, message=message, tag=tag, keep=keep
    )
    files, notes = _files(path)
    _check_names(files, path)
    plan = with_files(api, replace(plan, notes=tuple(notes)), path, files)
    if plan.parent and not plan.empty:
        check_tag(api, plan, "")  # the commit that it is to name is still to be made
    return plan


def _no_folder(text: str, path: str) -> NotACheckpoint:
    if is_ref(text):
        tip = (
            f"{text} looks like a name on the Hub, and push takes a local folder: download it first, or pass the folder"
            " that you mean"
        )
        return NotACheckpoint("no such folder", where=[path], help=tip)
    return NotACheckpoint("no such folder", where=[path], help="pass the folder of the model or adapter")


def looked(
    api: HfApi,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "",
    tag: str = "",
    keep: bool = False,
) -> PushPlan:
    """The plan of a push of no files: what the repository holds, and which commit the push will build on. See
    `plan_push`.
    """
    repo_id, revision = _target(repo_id, revision)
    _check_options(revision, create_pr=create_pr, tag=tag)
    place = [repo_id]
    about = about_repository(api, repo_id)
    if about is not None and private and not about.private:
        tip = "make it private in its settings, or choose another name; to push to it as it is, leave --private out"
        raise NotAllowed("the repository is there, and public", where=place, help=tip)
    branch = revision or MAIN
    parent = head_of(api, repo_id, branch) if about is not None else ""
    start = parent or (head_of(api, repo_id, MAIN) if about is not None else "")
    plan = PushPlan(
        repo_id=repo_id,
        revision=branch,
        parent=start,
        message=message,
        new_branch=about is not None and not parent,
        create_pr=create_pr,
        private=private,
        tag=tag,
        remote=tree_of(api, repo_id, start) if start else {},
        stale=not keep,
    )
    if start:
        check_tag(api, plan, start)
    return plan


def with_files(api: HfApi, plan: PushPlan, folder: str, files: Mapping[str, Local]) -> PushPlan:
    """The plan after which the repository holds `files`, with a card and a message that say what the model in
    `folder` is.
    """
    name = plan.repo_id.split("/")[-1]
    found = origins(LocalFolder(folder), name, plan.repo_id)
    card, said = _card(api, found, files.get(CARD), plan.repo_id if CARD in plan.remote else "", plan.parent)
    if CARD not in plan.remote or not plan.remote[CARD].holds(card):
        check_card(api, _text(card))
    whole = {**files, CARD: card, **_manifest(files, card)}
    said += of_another_model(api, plan, files)
    plan = replace(plan, message=plan.message or _message(folder), notes=(*plan.notes, *said), files=whole)
    return compared(plan, plan.parent, plan.remote)


def _target(repo_id: str, revision: str | None) -> tuple[str, str | None]:
    """`org/name`, `hf://org/name` and `org/name@branch` as a repository and a branch."""
    begin = SCHEME if has_scheme(repo_id) else ""  # as an output, org/name would be a folder here
    try:
        named = parse_ref(repo_id)
    except SurgeryError as error:
        raise SurgeryError(error.what, where=error.where, help=f"write {begin}{_NAMES}") from None
    if named.subfolder:
        tip = f"write {begin}org/name, without the folder: {begin}{named.repo_id}"
        raise SurgeryError("a push goes to a repository", where=[repo_id], help=tip)
    if "/" not in named.repo_id:
        raise SurgeryError("a push goes to a repository", where=[repo_id], help=f"write {begin}{_NAMES}")
    if named.revision and revision not in (None, named.revision):
        raise SurgeryError("two branches are named", where=[repo_id, f"--revision {revision}"], help="name one")
    return named.repo_id, revision or named.revision


def _check_options(revision: str | None, *, create_pr: bool, tag: str) -> None:
    if create_pr and revision not in (None, MAIN):
        tip = f"leave the branch out, @{revision} or --revision, or push to it without --create-pr"
        raise SurgeryError("a pull request is opened against main", help=tip)
    if create_pr and tag:
        raise SurgeryError("what a pull request holds is not tagged", help="merge it first, then tag it")


def _check_names(files: Iterable[str], folder: str) -> None:
    """Raise PlanError for names that a write refuses, too."""
    if wrong := faults_in(files):
        raise PlanError(
            f"{len(wrong)} files have names that are no paths inside a folder everywhere",
            where=[folder, *listed(wrong)],
            help="rename them, or move them out of the folder",
        )


def _files(folder: str) -> tuple[dict[str, Local], list[str]]:
    """All files of the folder, by their path in the repository; and what is not sent."""
    place, found, left = LocalFolder(folder), dict[str, Local](), []
    for path in place.walk(NEVER_SENT):
        if set(path.split("/")) & set(NEVER_SENT):
            left.append(path)
        else:
            found[path] = Local(place.file(path))
    left += [f"{name}/" for name in NEVER_SENT if os.path.isdir(os.path.join(folder, name))]
    return found, [f"not sent, since the Hub takes no such files: {', '.join(listed(left))}"] if left else []


def _manifest(files: Mapping[str, Local], card: Local) -> dict[str, Local]:
    """The manifest with the size and the digest of the card as it is sent, where it lists one."""
    if MANIFEST not in files or files.get(CARD) in (None, card):
        return {}
    content = json.loads(_text(files[MANIFEST]))  # read and checked by verify
    if CARD not in content["files"]:
        return {}
    content["files"][CARD] = card.nbytes
    if CARD in content.get("digests", {}):
        content["digests"][CARD] = card.sha256
    return {MANIFEST: Local((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())}


def _message(folder: str) -> str:
    manifest = origins(LocalFolder(folder), "").manifest
    steps = [str(step.get("surgery")) for step in manifest.history] if manifest else []
    return f"Upload with surgery{': ' + ', '.join(steps) if steps else ''}"


def _card(api: HfApi, said: Origins, own: Local | None, repo_id: str, revision: str) -> tuple[Local, list[str]]:
    """The card: the folder's own, else the repository's, completed; else a new one. And what it could not say.

    One that was written here, for what was pushed before or for the base, is written anew: this was made in another
    way.
    """
    metadata, notes = dict(said.metadata), list[str]()
    own = None if own and is_ours(_text(own)) else own
    text = _text(own) if own else _remote_card(api, repo_id, revision) if repo_id else None
    text = None if text is not None and not own and is_ours(text) else text
    given = text
    if text is not None:
        text, notes = accepted(text, said.bases)
    here = metadata_of(text) if text is not None else {}
    if said.named and "license" not in here:
        more, why = _license(api, said.named[0], new=text is None)
        metadata, notes = metadata | more, [*notes, *why]
    if not said.named and "base_model" not in here:
        notes.append("the card names no base_model: neither the manifest nor the configs name one on the Hub")
    if text is None:
        return Local(written(said, metadata).encode()), notes
    whole = completed(text, metadata)
    return (own if own and whole == given else Local(whole.encode())), notes


def _text(local: Local) -> str:
    return _decoded(raw_of(local))


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(
            "the card is not UTF-8", where=[CARD], help="the Hub takes no other: save it as UTF-8"
        ) from error


def _remote_card(api: HfApi, repo_id: str, revision: str) -> str:
    return _decoded(remote_file(api, repo_id, revision, CARD, "card"))


def _license(api: HfApi, base: str, *, new: bool) -> tuple[dict[str, Any], list[str]]:
    """The licence of the base, as its own card says it; and a note where it cannot be had, which is no reason not to
    push.

    That the base names none is said of a new card only: one that is there was left without a licence by its author.
    """
    try:
        card = retried(lambda: api.model_info(base), f"ask for the licence of {base}").card_data
    except HubError as error:
        return {}, [f"the card says no licence: {error.what}"]
    found = {
        key: value
        for key in ("license", "license_name", "license_link")
        if card is not None and (value := card.get(key))
    }
    return found, [f"the new card names no licence, since the card of {base} names none"] if new and not found else []
