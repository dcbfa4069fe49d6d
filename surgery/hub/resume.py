"""What a broken streamed run leaves: a stage here, a journal in it, and on the Hub contents that no commit holds
yet.

The journal lists what was sent, by name, size and sha256: nothing secret, no path of this machine. It is renamed
into place as a whole after each file, so it is never half written, and a file leaves the disk only when the journal
has it.

What the Hub still has is asked by hash, and becomes part of the commit without being made or sent again. The client
has no public way to commit content that is not here, so `operation` sets the attributes that the client itself sets
after an upload; `unsupported` says where a client has them not. The public way would be a branch of its own with one
commit per shard, merged at the end: the repository's history would show hundreds of commits of half a model for
good, and a pull request that fails in the middle would be there for all to see.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from inspect import signature
from typing import TYPE_CHECKING

from ..errors import FormatError
from ..execution.writing_inside import PARTS, Inside
from ..files.paths import faults_in
from ..files.refs import parse_ref
from .client import retried

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

JOURNAL = ".surgery/sent.json"
TESTED = ((2, 4), (3, 0))  # versions of huggingface_hub: from the first, and before the second
ASKED = 256  # contents in one question: the client's own number
_SET = frozenset({"upload_info", "_upload_mode", "_should_ignore", "_is_uploaded"})
_INFO = frozenset({"size", "sample", "sha256"})


@dataclass(frozen=True, slots=True)
class Entry:
    """A content that was sent."""

    nbytes: int
    sha256: str


def stage_of(dest: str, folder: str | None = None) -> str:
    """The place beside which the stages of outputs for `hf://org/name` are: in `folder`, or in the Hub's own folder,
    HF_HOME.
    """
    from huggingface_hub import constants

    root = folder or os.path.join(constants.HF_HOME, "surgery")
    return os.path.join(os.path.abspath(os.path.expanduser(root)), parse_ref(dest).repo_id.replace("/", "--"))


def read_journal(stage: str, identity: str) -> dict[str, Entry]:
    """What the plan `identity` has sent, by name."""
    path = os.path.join(stage, JOURNAL)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
        found = {str(name): Entry(int(row["nbytes"]), str(row["sha256"])) for name, row in content["files"].items()}
        if wrong := faults_in(found):
            raise ValueError(wrong[0])
        return found if content["identity"] == identity else {}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            "the journal of what was sent is damaged", where=[path], help=f"remove the stage: {stage}"
        ) from error


def write_journal(stage: Inside, identity: str, sent: Mapping[str, Entry]) -> None:
    """The journal says this, or, if the machine dies meanwhile, what it said before: then a little is sent again."""
    part = f"{PARTS}/journal"
    with open(stage.create(part), "w", encoding="utf-8") as stream:
        json.dump(
            {"identity": identity, "files": {name: asdict(entry) for name, entry in sent.items()}}, stream, indent=1
        )
        stream.flush()
        os.fsync(stream.fileno())
    stage.rename(part, JOURNAL)


def unsupported() -> str:
    """Why this client cannot take up what was sent; "" where it can."""
    import huggingface_hub
    from huggingface_hub import CommitOperationAdd, lfs

    version = tuple(int(part) for part in huggingface_hub.__version__.split(".")[:2])
    if not TESTED[0] <= version < TESTED[1]:
        return f"huggingface_hub {huggingface_hub.__version__} has not been tested for it"
    missing = _SET - {field.name for field in fields(CommitOperationAdd)}
    missing |= {f"UploadInfo.{name}" for name in _INFO - set(signature(lfs.UploadInfo).parameters)}
    missing |= {"lfs.post_lfs_batch_info"} - {f"lfs.{name}" for name in vars(lfs)}
    return f"huggingface_hub {huggingface_hub.__version__} has no {', '.join(sorted(missing))}" if missing else ""


def still_there(repo_id: str, sent: Mapping[str, Entry]) -> Iterator[str]:
    """The names of those contents that the Hub has: of others it says where to send them. Raises HubError."""
    from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info

    for names in (list(sent)[i : i + ASKED] for i in range(0, len(sent), ASKED)):
        infos = [
            UploadInfo(sha256=bytes.fromhex(sent[name].sha256), size=sent[name].nbytes, sample=b"") for name in names
        ]

        def ask(infos: list[UploadInfo] = infos) -> Iterable[dict[str, object]]:
            return post_lfs_batch_info(infos, token=None, repo_type="model", repo_id=repo_id)[0]

        rows = retried(ask, "ask what the Hub has of a broken run", [repo_id])
        there = {row["oid"] for row in rows if not row.get("actions")}
        yield from (name for name in names if sent[name].sha256 in there)


def operation(name: str, entry: Entry) -> CommitOperationAdd:
    """What makes a content that is on the Hub the file `name` of a commit."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    made = CommitOperationAdd(name, b"")
    made.upload_info = UploadInfo(sha256=bytes.fromhex(entry.sha256), size=entry.nbytes, sample=b"")
    made._upload_mode, made._should_ignore, made._is_uploaded = "lfs", False, True
    return made
