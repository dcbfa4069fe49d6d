"""What a Hub holds: repositories of commits of files, branches and tags, users and their tokens.

A blob's content is bytes, or a file that is read where it lies: a sparse file of a terabyte costs nothing. Hashes are
git's and LFS' own, computed when they are asked for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

WINDOW = 1 << 20
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "tokenizer.model")
LFS_SIZE = 10 << 20  # a larger file goes to LFS whatever it is called
ATTRIBUTES = "".join(f"{p} filter=lfs diff=lfs merge=lfs -text\n" for p in LFS_PATTERNS).encode()


@dataclass(frozen=True)
class Blob:
    """A file's content. `said` is the sha256 to claim where hashing a sparse terabyte would take hours."""

    source: bytes | Path
    lfs: bool = False
    said: str = ""
    xet: str = ""  # the hash by which Xet knows it

    @cached_property
    def size(self) -> int:
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    def read(self, start: int = 0, stop: int | None = None) -> bytes:
        if isinstance(self.source, bytes):
            return self.source[start:stop]
        with open(self.source, "rb") as stream:
            return os.pread(stream.fileno(), (self.size if stop is None else stop) - start, start)

    @cached_property
    def sha256(self) -> str:
        if self.said:
            return self.said
        if isinstance(self.source, bytes):
            return hashlib.sha256(self.source).hexdigest()
        with open(self.source, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    @cached_property
    def pointer(self) -> bytes:
        """The LFS pointer file that git holds in the content's place."""
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {self.size}\n".encode()

    @cached_property
    def oid(self) -> str:
        """Git's own hash: of the content, or of the pointer."""
        held = self.pointer if self.lfs else self.read()
        return hashlib.sha1(b"blob %d\0" % len(held) + held).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A state of all files, and what led to it."""

    parent: str
    title: str
    description: str
    author: str
    files: Mapping[str, Blob]

    @cached_property
    def sha(self) -> str:
        tree = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(self.files.items()))
        return hashlib.sha1(
            f"{self.parent}\n{self.author}\n{self.title}\n{self.description}\n{tree}".encode()
        ).hexdigest()


@dataclass
class Pull:
    """A pull request, whose commits lie on refs/pr/N."""

    number: int
    title: str
    base: str = "main"
    status: str = "open"


@dataclass
class Repo:
    """One repository; `objects` are the LFS contents that it received, committed or not, by sha256."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    objects: dict[str, Blob] = field(default_factory=dict)

    def resolve(self, revision: str) -> Commit | None:
        """A branch, a tag, refs/pr/N, or a commit by its (shortened) hash."""
        plain = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for names in (self.branches, self.tags):
            if plain in names:
                return self.commits[names[plain]]
        found = [c for sha, c in self.commits.items() if len(revision) >= 7 and sha.startswith(revision)]
        return found[0] if len(found) == 1 else None

    def commit(
        self, branch: str, files: Mapping[str, Blob], title: str, description: str = "", author: str = "someone"
    ) -> Commit:
        """The branch moves on to a commit of exactly `files`."""
        made = Commit(self.branches.get(branch, ""), title, description, author, dict(files))
        self.commits[made.sha] = made
        self.branches[branch] = made.sha
        self.objects |= {blob.sha256: blob for blob in files.values() if blob.lfs}
        return made

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        commit, found = self.resolve(revision), []
        while commit:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found


@dataclass(frozen=True)
class User:
    """Whose token it is, and what it may."""

    name: str
    orgs: tuple[str, ...] = ()
    write: bool = True


def is_lfs(path: str, size: int) -> bool:
    """How the Hub has a file sent."""
    return size > 0 and (size > LFS_SIZE or any(fnmatch(path.rsplit("/", 1)[-1], p) for p in LFS_PATTERNS))


def folders_of(paths: Iterable[str]) -> list[str]:
    """All folders that hold one of the files, directly or below."""
    return sorted({"/".join(parts[:i]) for p in paths for parts in [p.split("/")] for i in range(1, len(parts))})
