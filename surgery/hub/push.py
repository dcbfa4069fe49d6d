"""Push: a folder becomes one commit of a repository on the Hub.

`plan_push` only looks: what the Hub has already, by hash, stays there; what is new or changed is sent; shards and an index
of the same weights that are not in the folder are stale, and deleted in the same commit. `execute_push` sends the files
ahead, large ones one by one, and then makes the commit, which names its parent: so nothing is visible before all of it is,
and nothing is made twice. Where the answer to the commit is lost, the repository's history says whether it was made.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..checks.verify import verify
from ..errors import FormatError, HubConflict, HubError, NotACheckpoint, NotAllowed, NotOnHub, SourceChanged, SurgeryError, listed
from ..files.folder import LocalFolder
from ..files.manifest import MANIFEST
from ..files.peft import CONFIG as ADAPTER_CONFIG
from ..lazy.tensor import File
from . import client
from .card import CARD, Origins, completed, is_ours, metadata_of, origins, written
from .client import retried, translated
from .refs import SCHEME, has_scheme, is_ref, parse_ref

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi

MAIN = "main"
LARGE = 10_000_000  # bytes: such files are sent one by one, the rest together
NEVER_SENT = (".git", ".cache")  # the Hub takes no files in such folders
_WEIGHTS = re.compile(
    r"(?P<stem>.+?)(?:\.safetensors)?(?:-\d+-of-\d+)?\.safetensors|(?P<index>.+?)\.safetensors\.index(?:\.[\w.-]+)?\.json"
)
_OTHERS = re.compile(r"[^/]+\.(?:safetensors|bin|pt|pth|ckpt|h5|msgpack|gguf)")
_ADAPTER = re.compile(r"adapter_model[^/]*\.safetensors")
_BESIDE = re.compile(  # what loaders read beside the weights, and take for that of the model that is there
    r"(?:generation_config|tokenizer|special_tokens_map|added_tokens|vocab|merges|spiece|sentencepiece|chat_template"
    r"|preprocessor_config|processor_config)[^/]*|[^/]+\.(?:model|tiktoken)"
)
_NAMES = "org/name: letters, digits and -_. with no -- and no .., and neither of the two begins or ends with - or ."


@dataclass(frozen=True, slots=True)
class Sent:
    """Content that is on the Hub, in no commit yet, and perhaps not here any more; `operation` makes it a file of a commit."""

    nbytes: int
    sha256: str
    operation: CommitOperationAdd


@dataclass(frozen=True)
class Local:
    """A file to be on the Hub: one of this machine, content that was made for it, or that was sent ahead."""

    source: File | bytes | Sent

    @property
    def nbytes(self) -> int:
        """Its size."""
        match self.source:
            case File(_, size):
                return size
            case Sent(nbytes):
                return nbytes
            case bytes():
                return len(self.source)

    @cached_property
    def sha256(self) -> str:
        """The hash by which the Hub knows large files. Reads the file, once."""
        if isinstance(self.source, Sent):
            return self.source.sha256
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with open(self.source.path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def oid(self) -> str:
        """The hash by which git knows small files; "" for what was sent ahead, which is none."""
        raw = self.source
        if isinstance(raw, Sent):
            return ""
        if isinstance(raw, File):
            with open(raw.path, "rb") as stream:
                raw = stream.read()
        return hashlib.sha1(b"blob %d\0" % len(raw) + raw, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class Remote:
    """A file of the repository; `sha256` is "" where git itself holds it."""

    nbytes: int
    oid: str
    sha256: str

    def holds(self, local: Local) -> bool:
        """Whether it is the same file, byte for byte."""
        return self.nbytes == local.nbytes and (self.sha256 == local.sha256 if self.sha256 else self.oid == local.oid)


@dataclass(frozen=True, slots=True)
class Item:
    """A file of a plan; `source` is the path in the repository that it is copied from, where the Hub has its content there."""

    path: str
    nbytes: int
    source: str = ""


@dataclass(frozen=True)
class PushPlan:
    """What a push will do. `parent` is the commit that it builds on; "" where the repository is still to be made."""

    repo_id: str
    revision: str
    parent: str
    message: str
    send: tuple[Item, ...] = ()
    copy: tuple[Item, ...] = ()  # the Hub has the content, under another name
    there: tuple[Item, ...] = ()
    delete: tuple[Item, ...] = ()
    keep: tuple[Item, ...] = ()  # of the repository, and not of the folder
    new_branch: bool = False
    create_pr: bool = False
    private: bool | None = None
    tag: str = ""
    notes: tuple[str, ...] = ()
    files: Mapping[str, Local] = field(default_factory=dict, repr=False)
    remote: Mapping[str, Remote] = field(default_factory=dict, repr=False)
    stale: bool = True  # whether stale weights are deleted

    @property
    def nbytes(self) -> int:
        """Bytes to be sent."""
        return sum(item.nbytes for item in self.send)

    @property
    def empty(self) -> bool:
        """Whether the repository is already as it should be."""
        return bool(self.parent) and not (self.send or self.copy or self.delete)


@dataclass(frozen=True, slots=True)
class PushReport:
    """What a push did. `commit` is the one that holds the files, made or found; sizes are bytes."""

    repo_id: str
    revision: str
    commit: str
    url: str
    pull_request: str
    tag: str
    sent: tuple[str, ...]
    copied: tuple[str, ...]
    there: tuple[str, ...]
    deleted: tuple[str, ...]
    kept: tuple[str, ...]
    nbytes: int
    seconds: float
    notes: tuple[str, ...]


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
    plan = plan_push(folder, repo_id, private=private, revision=revision, create_pr=create_pr, message=message, tag=tag, keep=keep)
    return execute_push(plan, on_file=on_file)


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

    The folder is verified first: headers, index and files have to agree. `private` says how the repository is made if it is
    not there; with True, one that is public is refused. `revision` is a branch, made from main if it is not there. With
    `keep`, nothing is deleted. Raises VerificationFailed, NotACheckpoint, HubError.
    """
    path = os.path.abspath(os.fspath(folder))
    if not os.path.lexists(path):
        raise _no_folder(os.fspath(folder), path)
    if not os.path.isdir(path):
        raise NotACheckpoint("a folder is pushed", where=[path], help="pass the folder of the model or adapter")
    verify(path, check_class=False).require()
    api = client.api()
    plan = looked(api, repo_id, private=private, revision=revision, create_pr=create_pr, message=message, tag=tag, keep=keep)
    files, notes = _files(path)
    plan = with_files(api, replace(plan, notes=tuple(notes)), path, files)
    if plan.parent and not plan.empty:
        _check_tag(api, plan, "")  # the commit that it is to name is still to be made
    return plan


def _no_folder(text: str, path: str) -> NotACheckpoint:
    if is_ref(text):
        tip = f"{text} looks like a name on the Hub, and push takes a local folder: download it first, or pass the folder that you mean"
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
    """The plan of a push of no files: what the repository holds, and which commit the push will build on. See `plan_push`."""
    repo_id, revision = _target(repo_id, revision)
    _check_options(revision, create_pr=create_pr, tag=tag)
    place = [repo_id]
    about = _about(api, repo_id)
    if about is not None and private and not about.private:
        tip = "make it private in its settings, or choose another name; to push to it as it is, leave --private out"
        raise NotAllowed("the repository is there, and public", where=place, help=tip)
    branch = revision or MAIN
    parent = _head(api, repo_id, branch) if about is not None else ""
    start = parent or (_head(api, repo_id, MAIN) if about is not None else "")
    plan = PushPlan(
        repo_id=repo_id,
        revision=branch,
        parent=start,
        message=message,
        new_branch=about is not None and not parent,
        create_pr=create_pr,
        private=private,
        tag=tag,
        remote=_tree(api, repo_id, start) if start else {},
        stale=not keep,
    )
    if start:
        _check_tag(api, plan, start)
    return plan


def with_files(api: HfApi, plan: PushPlan, folder: str, files: Mapping[str, Local]) -> PushPlan:
    """The plan after which the repository holds `files`, with a card and a message that say what the model in `folder` is."""
    name = plan.repo_id.split("/")[-1]
    found = origins(LocalFolder(folder), name, plan.repo_id)
    card, said = _card(api, found, files.get(CARD), plan.repo_id if CARD in plan.remote else "", plan.parent)
    whole = {**files, CARD: card, **_manifest(files, card)}
    said += of_another_model(api, plan, files)
    plan = replace(plan, message=plan.message or _message(folder), notes=(*plan.notes, *said), files=whole)
    return _compared(plan, plan.parent, plan.remote)


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


def _compared(plan: PushPlan, parent: str, remote: Mapping[str, Remote]) -> PushPlan:
    """The plan for a repository whose `parent` holds the files `remote`. Only what may be equal is hashed: files of equal size."""
    contents = {(r.nbytes, r.sha256): path for path, r in remote.items() if r.sha256}
    sizes = {nbytes for nbytes, _ in contents}
    send, copy, there = [], [], []
    for path, local in sorted(plan.files.items()):
        item = Item(path, local.nbytes)
        if path in remote and remote[path].holds(local):
            there.append(item)
        elif local.nbytes in sizes and (local.nbytes, local.sha256) in contents:
            copy.append(replace(item, source=contents[local.nbytes, local.sha256]))
        else:
            send.append(item)
    plan = replace(plan, parent=parent, remote=remote, send=tuple(send), copy=tuple(copy), there=tuple(there))
    return with_others(plan, plan.files)


def with_others(plan: PushPlan, files: Iterable[str]) -> PushPlan:
    """The plan with what becomes of the repository's files that are none of `files`."""
    names = set(files)
    others = {path: Item(path, r.nbytes) for path, r in sorted(plan.remote.items()) if path not in names}
    stale = _stale(names, others) if plan.stale else set()
    odd = [path for path in others if path not in stale and _OTHERS.fullmatch(path)]
    return replace(
        plan,
        delete=tuple(item for path, item in others.items() if path in stale),
        keep=tuple(item for path, item in others.items() if path not in stale),
        notes=(
            *plan.notes,
            *([f"the repository has other weights, too, which are left alone: {', '.join(listed(odd))}"] if odd else []),
            *_of_adapter(plan, _replaced_adapter(names, others)),
        ),
    )


def _of_adapter(plan: PushPlan, adapter: set[str]) -> list[str]:
    if not adapter:
        return []
    files = ", ".join(listed(sorted(adapter)))
    if plan.stale:
        return [f"the repository's adapter is deleted, since transformers would load it on top of this model: {files}"]
    return [f"with --keep, transformers WILL LOAD THE REPOSITORY'S ADAPTER ON TOP of this model, which may hold it already: {files}"]


def _replaced_adapter(files: set[str], others: Iterable[str]) -> set[str]:
    """The adapter among the other files, where what is pushed is a model: transformers loads one that lies beside a model."""
    others = set(others)
    if "config.json" not in files or ADAPTER_CONFIG in files or ADAPTER_CONFIG not in others or not weights_in(files):
        return set()
    return {path for path in others if path == ADAPTER_CONFIG or _ADAPTER.fullmatch(path)}


def of_another_model(api: HfApi, plan: PushPlan, files: Mapping[str, Local]) -> list[str]:
    """A note where the repository holds a model of another type than `files`, with what stays of it that loaders read."""
    if not {"config.json"} <= files.keys() & plan.remote.keys() or not weights_in(plan.remote):
        return []
    if plan.remote["config.json"].holds(files["config.json"]):
        return []
    ours = _model_type(_raw(files["config.json"]))
    theirs = _model_type(_remote_file(api, plan.repo_id, plan.parent, "config.json"))
    if not ours or not theirs or ours == theirs:
        return []
    left = sorted(path for path in plan.remote if path not in files and _BESIDE.fullmatch(path) and not _OTHERS.fullmatch(path))
    kept = f"; kept of that one, and read with the new weights: {', '.join(listed(left))}" if left else ""
    return [f"this is a model of type {ours}, and the one that the repository holds is of type {theirs}{kept}"]


def _model_type(config: bytes) -> str:
    """The type that a config names; "" where it is none that can be read."""
    try:
        content = json.loads(config)
    except ValueError:
        return ""
    return str(content.get("model_type") or "") if isinstance(content, dict) else ""


def weights_in(files: Iterable[str]) -> list[str]:
    """Those of a repository's files that are weights, or an index of weights; none of those in folders."""
    return [path for path in files if _OTHERS.fullmatch(path) or _stem(path)]


def _stale(files: set[str], others: Iterable[str]) -> set[str]:
    """Of the other files, what loaders would take for parts of the pushed weights, or add to them, and what surgery noted of them."""
    stems = {stem for path in files if (stem := _stem(path))}
    same = {path for path in others if _stem(path) in stems or path.startswith(".surgery/")}
    return same | _replaced_adapter(files, others)


def _stem(path: str) -> str | None:
    """What the weights are called whose shard or index the file is; None for other files, and those in folders."""
    found = None if "/" in path else _WEIGHTS.fullmatch(path)
    return (found["stem"] or found["index"]) if found else None


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
    """The manifest with the size of the card as it is sent, where it lists one."""
    if MANIFEST not in files or files.get(CARD) in (None, card):
        return {}
    content = json.loads(_text(files[MANIFEST]))  # read and checked by verify
    if CARD not in content["files"]:
        return {}
    content["files"][CARD] = card.nbytes
    return {MANIFEST: Local((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())}


def _message(folder: str) -> str:
    manifest = origins(LocalFolder(folder), "").manifest
    steps = [str(step.get("surgery")) for step in manifest.history] if manifest else []
    return f"Upload with surgery{': ' + ', '.join(steps) if steps else ''}"


def _card(api: HfApi, said: Origins, own: Local | None, repo_id: str, revision: str) -> tuple[Local, list[str]]:
    """The card: the folder's own, else the repository's, completed; else a new one. And what it could not say.

    One that was written here, for what was pushed before or for the base, is written anew: this was made in another way.
    """
    metadata, notes = dict(said.metadata), list[str]()
    own = None if own and is_ours(_text(own)) else own
    text = _text(own) if own else _remote_card(api, repo_id, revision) if repo_id else None
    text = None if text is not None and not own and is_ours(text) else text
    here = metadata_of(text) if text is not None else {}
    if said.named and "license" not in here:
        more, notes = _license(api, said.named[0], new=text is None)
        metadata |= more
    if not said.named and "base_model" not in here:
        notes.append("the card names no base_model: neither the manifest nor the configs name one on the Hub")
    if text is None:
        return Local(written(said, metadata).encode()), notes
    whole = completed(text, metadata)
    return (own if own and whole == text else Local(whole.encode())), notes


def _text(local: Local) -> str:
    return _decoded(_raw(local))


def _raw(local: Local) -> bytes:
    raw = local.source
    assert not isinstance(raw, Sent), "a card, a config and a manifest travel in the commit itself"
    if isinstance(raw, File):
        with open(raw.path, "rb") as stream:
            return stream.read()
    return raw


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError("the card is not UTF-8", where=[CARD], help="the Hub takes no other: save it as UTF-8") from error


def _remote_card(api: HfApi, repo_id: str, revision: str) -> str:
    return _decoded(_remote_file(api, repo_id, revision, CARD, "card"))


def _remote_file(api: HfApi, repo_id: str, revision: str, path: str, what: str = "config") -> bytes:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    def fetch() -> bytes:
        answer = get_session().get(hf_hub_url(repo_id, path, revision=revision, endpoint=api.endpoint), headers=build_hf_headers())
        hf_raise_for_status(answer)
        return bytes(answer.content)

    return retried(fetch, f"read the {what}", [f"{repo_id}: {path}"])


def _license(api: HfApi, base: str, *, new: bool) -> tuple[dict[str, Any], list[str]]:
    """The licence of the base, as its own card says it; and a note where it cannot be had, which is no reason not to push.

    That the base names none is said of a new card only: one that is there was left without a licence by its author.
    """
    try:
        card = retried(lambda: api.model_info(base), f"ask for the licence of {base}").card_data
    except HubError as error:
        return {}, [f"the card says no licence: {error.what}"]
    found = {key: value for key in ("license", "license_name", "license_link") if card is not None and (value := card.get(key))}
    return found, [f"the new card names no licence, since the card of {base} names none"] if new and not found else []


# Looking.


def _about(api: HfApi, repo_id: str) -> Any:
    """What the Hub says of the repository; None where it has none of that name, or shows none."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return retried(lambda: api.model_info(repo_id), "look at the repository", [repo_id])
    except NotOnHub as error:
        if isinstance(error.__cause__, RepositoryNotFoundError) and not isinstance(error.__cause__, GatedRepoError):
            return None
        raise


def _head(api: HfApi, repo_id: str, revision: str) -> str:
    """The commit that the branch is at; "" where there is no such branch."""
    refs = _refs(api, repo_id)
    if revision in refs:
        return refs[revision]
    if revision.startswith("refs/") or re.fullmatch(r"[0-9a-f]{40}", revision):
        tip = "pass the name of a branch; it is made if it is not there"
        raise NotOnHub("there is no such branch or pull request to push to", where=[f"{repo_id}: {revision}"], help=tip)
    return ""


def _refs(api: HfApi, repo_id: str) -> dict[str, str]:
    """Branches by name, and pull requests as refs/pr/N: the commit that each is at."""
    found = retried(lambda: api.list_repo_refs(repo_id, include_pull_requests=True), "list the branches", [repo_id])
    return {ref.name: ref.target_commit for ref in found.branches} | {ref.ref: ref.target_commit for ref in found.pull_requests or []}


def _tree(api: HfApi, repo_id: str, revision: str, doing: str = "list the files") -> dict[str, Remote]:
    """All files of a revision."""
    from huggingface_hub.hf_api import RepoFile

    with translated(doing, [f"{repo_id}@{revision}"]):
        entries = [e for e in api.list_repo_tree(repo_id, recursive=True, revision=revision) if isinstance(e, RepoFile)]
    return {e.path: Remote(e.size, e.blob_id, e.lfs.sha256 if e.lfs else "") for e in entries}


def _check_tag(api: HfApi, plan: PushPlan, commit: str) -> None:
    """A tag of that name, if there is one, names `commit`: another one is in the way."""
    tags = retried(lambda: api.list_repo_refs(plan.repo_id), "list the tags", [plan.repo_id]).tags if plan.tag else []
    if taken := [t.target_commit for t in tags if t.name == plan.tag and t.target_commit != commit]:
        raise HubConflict(f"the tag {plan.tag} is taken", where=[f"{plan.repo_id}: {plan.tag} names {taken[0]}"], help="choose another tag")


# Doing.


def execute_push(plan: PushPlan, *, on_file: Callable[[str, int], None] | None = None) -> PushReport:
    """Carry out a plan; the repository holds all of it when this returns, and holds none of it if this raises before its commit.

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
        url=f"{api.endpoint}/{plan.repo_id}/commit/{commit}",
        pull_request=pull,
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
        head = _head(api, plan.repo_id, MAIN)
        plan = _compared(plan, head, _tree(api, plan.repo_id, head))
        plan = replace(plan, new_branch=plan.revision != MAIN)
    if plan.new_branch:
        make = lambda: api.create_branch(plan.repo_id, branch=plan.revision, revision=plan.parent, exist_ok=True)  # noqa: E731
        retried(make, f"make the branch {plan.revision}", where)
    return plan


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
    with translated(f"send {', '.join(listed(names, 2))}", [plan.repo_id]):
        api.preupload_lfs_files(plan.repo_id, operations, revision=plan.revision, create_pr=plan.create_pr, free_memory=free_memory)
    # The client would leave such files out of the commit in silence; no public attribute tells them.
    if left := [operation.path_in_repo for operation in operations if getattr(operation, "_should_ignore", False)]:
        tip = "change .gitignore, or remove the files from the folder"
        raise HubError(".gitignore leaves out files that are to be pushed", where=[plan.repo_id, *listed(left)], help=tip)


def _check_unchanged(local: Local) -> None:
    if isinstance(local.source, File):
        path = local.source.path
        status = os.stat(path)
        if (status.st_size, status.st_mtime_ns) != (local.source.size, local.source.mtime_ns):
            raise SourceChanged("the file changed while it was being sent", where=[path], help="run again when nothing writes to it")


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
    return {ref for ref in _refs(api, plan.repo_id) if ref.startswith("refs/pr/")} if plan.create_pr else set()


def _found(api: HfApi, plan: PushPlan, pulls: set[str], error: HubError) -> tuple[str, str] | None:
    """Our commit, if it was made in spite of the error; None where it can be tried again. Raises HubConflict where it cannot."""
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

    Our commit can only be a child of the parent that it names, so the first one after it, or a new pull request's, is ours or none.
    """
    if plan.create_pr:
        new = {ref: sha for ref, sha in _refs(api, plan.repo_id).items() if ref.startswith("refs/pr/") and ref not in pulls}
        found = [(sha, ref) for ref, sha in new.items() if not _differing(plan, _tree(api, plan.repo_id, sha))]
        return (found[0][0], f"{api.endpoint}/{plan.repo_id}/discussions/{found[0][1].rsplit('/', 1)[-1]}") if found else None
    since = _since(api, plan)
    if not since:
        return None
    first = since[-1].commit_id
    return None if _differing(plan, _tree(api, plan.repo_id, first)) else (first, "")


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
    now = _tree(api, plan.repo_id, since[0].commit_id)
    changed = sorted(path for path in {*now, *plan.remote} if now.get(path) != plan.remote.get(path))
    rows = [f"{commit.commit_id[:8]} {', '.join(commit.authors)}: {commit.title}" for commit in since]
    raise HubConflict(
        f"someone else committed to {plan.revision} meanwhile, and nothing was changed by this push",
        where=[plan.repo_id, *listed(rows), f"changed there: {', '.join(listed(changed))}"],
        help="look at it, then run the same command again: what was sent already is not sent again",
    ) from error.__cause__


def _check_arrived(api: HfApi, plan: PushPlan, revision: str) -> None:
    """What the commit holds is what was to be there, by hash."""
    if wrong := _differing(plan, _tree(api, plan.repo_id, revision, "look at the commit, which was made")):
        raise HubError(
            f"{len(wrong)} files are not on the Hub as they were sent",
            where=[f"{plan.repo_id}@{revision}", *listed(wrong)],
            help="run the same command again when nothing writes to the folder",
        )


def _tagged(api: HfApi, plan: PushPlan, commit: str) -> None:
    """The tag names the commit. One that does so already is fine: it may be our own, whose answer was lost."""
    doing, where = f"tag {commit[:8]} as {plan.tag}", [plan.repo_id, f"the commit {commit} was made"]
    retried(lambda: api.create_tag(plan.repo_id, tag=plan.tag, revision=commit, exist_ok=True), doing, where)
    _check_tag(api, plan, commit)


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
