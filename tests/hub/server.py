"""A Hub on 127.0.0.1, for the real client, with faults on demand.

    with Hub() as hub:
        hub.create("org/name")
        hub.put("org/name", {"config.json": b"{}", "model.safetensors": Path("model.safetensors")})
        fault = hub.fault(Status(503), "GET .*/resolve/", times=2)
        ...
        assert fault.fired == 2

Two origins, `hub` (`hub.endpoint`) and `cdn` (`hub.cdn.url`: LFS uploads, and downloads with `hub.redirect = True`),
write one log, `hub.log`. Xet's storage is on the second one, too. Repositories need a token to be written, private
ones to be read.
"""

from __future__ import annotations

import re
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from . import api, transfer, xet
from .faults import Fault, Faults, Kind
from .store import Blob, Commit, Repo, User, is_lfs
from .wire import Answer, Refused, Request, Seen, Wire

TOKEN = "hf_" + "tOKENofTheTests" * 2  # may write in `org` and `someone`

_ID = r"(?P<name>[\w.-]+(?:/[\w.-]+)?)"
_OID = r"(?P<oid>[0-9a-f]{64})"
_FILE = r"(?P<revision>[^/]+)/(?P<path>.+)"
_OF_REPO = tuple(
    (method, re.compile(f"/api/models/{_ID}{rest}"), function, write)
    for method, rest, function, write in (*api.OF_REPO, *xet.OF_REPO)
)
_HUB = (
    *_OF_REPO,
    ("POST", re.compile(rf"/{_ID}\.git/info/lfs/objects/batch"), transfer.batch, True),
    ("GET", re.compile(f"/{_ID}/resolve/{_FILE}"), transfer.resolve, False),
    # whoever got these links may use them
    ("POST", re.compile(f"/complete/{_ID}/{_OID}"), transfer.complete, None),
    ("POST", re.compile(f"/verify/{_ID}/{_OID}"), transfer.verify, None),
)
_CDN = (
    ("PUT", re.compile(f"/upload/{_ID}/{_OID}"), transfer.upload, None),
    ("GET", re.compile(f"/file/{_ID}/{_FILE}"), transfer.fetch, None),
)


class Hub:
    """The server; usable from its making until `stop`."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.users: dict[str, User] = {TOKEN: User("someone", ("org",))}
        self.log: list[Seen] = []
        self.lock = threading.RLock()
        self.part_size = 0  # above: LFS in parts of that size
        self.redirect = False  # LFS files are fetched from the second origin
        self.signature = "1"
        self.page = 1000  # entries of a tree at a time
        self.slept: list[float] = []  # pauses that the client of the tests' process wanted to make
        self.store = xet.Store()
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self.root = Path(self._folder.name)
        self._faults = Faults()
        self._wire = Wire("hub", self.log, self._faults, self._dispatch)
        self.cdn = Wire("cdn", self.log, self._faults, self._dispatch_cdn)
        self.endpoint = self._wire.url

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._wire.stop()
        self.cdn.stop()
        self._folder.cleanup()

    # What a test prepares.

    def create(self, name: str, *, private: bool = False) -> Repo:
        """An empty repository: one commit on main, with `.gitattributes` alone."""
        self.repos[name] = api.new_repo(name, private=private)
        return self.repos[name]

    def put(
        self,
        name: str,
        files: Mapping[str, bytes | Path | None],
        *,
        branch: str = "main",
        title: str = "put",
        hashed: bool = True,
    ) -> Commit:
        """Commit files past the API: bytes, a path that is read where it lies, or None to delete.

        Without `hashed`, LFS files get a sha256 that is made up from their name and size: for sparse files of any size.
        """
        repo = self.repos.get(name) or self.create(name)
        with self.lock:
            made = {path: _blob(path, source, hashed=hashed) for path, source in files.items() if source is not None}
            kept = {path: blob for path, blob in repo.commits[repo.branches[branch]].files.items() if path not in files}
            return repo.commit(branch, kept | made, title)

    def put_folder(self, name: str, folder: Path, *, branch: str = "main", hashed: bool = True) -> Commit:
        """Commit all files below a folder."""
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        return self.put(name, files, branch=branch, hashed=hashed)

    def token(self, value: str, user: str, *orgs: str, write: bool = True) -> str:
        """Make a token known."""
        self.users[value] = User(user, orgs, write)
        return value

    def expire_links(self) -> None:
        """Signed links of the second origin that were given out are worth nothing from now on."""
        self.signature = str(int(self.signature) + 1)

    def fault(self, kind: Kind, pattern: str, *, times: int = 1, skip: int = 0, origin: str = "") -> Fault:
        """Set a fault for requests whose `METHOD /path?query` holds the pattern."""
        fault = Fault(kind, pattern, times, skip, origin)
        self._faults.set.append(fault)
        return fault

    # What a test looks at.

    def files(self, name: str, revision: str = "main") -> dict[str, Blob]:
        """The files of a revision, by path."""
        commit = self.repos[name].resolve(revision)
        assert commit is not None, f"{name} has no revision {revision}"
        return dict(commit.files)

    def hashes(
        self, name: str, revision: str = "main", *, without: tuple[str, ...] = (".gitattributes",)
    ) -> dict[str, str]:
        """SHA-256 of every file's content, by path."""
        return {p: b.sha256 for p, b in sorted(self.files(name, revision).items()) if not p.startswith(without)}

    def titles(self, name: str, revision: str = "main") -> list[str]:
        """The titles of the commits, newest first."""
        return [commit.title for commit in self.repos[name].history(revision)]

    def seen(self, pattern: str) -> list[Seen]:
        """Logged requests whose `METHOD /path` (unquoted) holds the pattern."""
        return [seen for seen in self.log if re.search(pattern, str(seen))]

    # What routes ask.

    def user(self, request: Request) -> User | None:
        """Whose token came along; None without one."""
        if request.token and request.token not in self.users:
            raise Refused(401, "Invalid credentials in Authorization header")
        return self.users.get(request.token)

    def repo(self, request: Request, name: str, *, write: bool) -> Repo:
        """The repository, if whoever asks may see it, and write to it if so asked."""
        user, repo = self.user(request), self.repos.get(name)
        own = user is not None and name.split("/")[0] in (user.name, *user.orgs)
        if repo is None or (repo.private and not own):
            raise Refused(
                404 if user else 401,
                "Repository not found" if user else "Invalid username or password.",
                "RepoNotFound",
            )
        if repo.gated and not own and "/resolve/" in request.path:
            raise Refused(403 if user else 401, f"Access to model {name} is restricted.", "GatedRepo")
        if write and user is None:
            raise Refused(401, "Invalid username or password.")
        if write and (not own or (user and not user.write)):
            raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
        return repo

    def commit(self, repo: Repo, revision: str) -> Commit:
        found = repo.resolve(revision)
        if found is None:
            raise Refused(404, "Invalid rev id: " + revision, "RevisionNotFound")
        return found

    def _dispatch(self, request: Request) -> Answer:
        for method, pattern, function in api.OF_ALL:
            if request.method == method and request.path == pattern:
                return function(self, request)
        return self._of_repo(_HUB, request)

    def _dispatch_cdn(self, request: Request) -> Answer:
        for method, rest, function in xet.OF_CAS:
            if request.method == method and (found := re.fullmatch(rest, request.path)):
                return function(self, request, **found.groupdict())
        return self._of_repo(_CDN, request)

    def _of_repo(
        self, routes: tuple[tuple[str, re.Pattern[str], Callable[..., Answer], bool | None], ...], request: Request
    ) -> Answer:
        wanted = "GET" if request.method == "HEAD" else request.method
        for method, pattern, function, write in routes:
            if method != wanted or not (found := pattern.fullmatch(request.path)):
                continue
            values: dict[str, Any] = {k: unquote(v) for k, v in found.groupdict().items() if v is not None}
            name = values.pop("name")
            if write is None:
                return function(self, request, self.repos[name], **values)
            return function(self, request, self.repo(request, name, write=write), **values)
        raise Refused(404, f"no route for {request.method} {request.path}")


def _blob(path: str, source: bytes | Path, *, hashed: bool) -> Blob:
    blob = Blob(source)
    lfs = is_lfs(path, blob.size)
    return Blob(source, lfs, "" if hashed or not lfs else _made_up(path, blob.size))


def _made_up(path: str, size: int) -> str:
    import hashlib

    return hashlib.sha256(f"{path}:{size}".encode()).hexdigest()
