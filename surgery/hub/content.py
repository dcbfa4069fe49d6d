"""What a push is made of: the files here and there, and the plan and the report of one commit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from ..files.opening import regular
from ..lazy.tensor import File

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


MAIN = "main"
LARGE = 10_000_000  # bytes: such files are sent one by one, the rest together


@dataclass(frozen=True, slots=True)
class Sent:
    """Content that is on the Hub, in no commit yet, and perhaps not here any more; `operation` makes it a file of a
    commit.
    """

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
        with open(self.source.path, "rb", opener=regular) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def oid(self) -> str:
        """The hash by which git knows small files; "" for what was sent ahead, which is none."""
        raw = self.source
        if isinstance(raw, Sent):
            return ""
        if isinstance(raw, File):
            with open(raw.path, "rb", opener=regular) as stream:
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
    """A file of a plan; `source` is the path in the repository that it is copied from, where the Hub has its content
    there.
    """

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


def raw_of(local: Local) -> bytes:
    raw = local.source
    assert not isinstance(raw, Sent), "a card, a config and a manifest travel in the commit itself"
    if isinstance(raw, File):
        with open(raw.path, "rb", opener=regular) as stream:
            return stream.read()
    return raw
