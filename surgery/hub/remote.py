"""Files on the Hub: listed once, pinned to a commit, read by ranges.

A revision is resolved when a folder is opened, and everything afterwards names that commit: a branch that moves
meanwhile cannot mix two versions. What lies in the local cache for that commit is read from there, and with
HF_HUB_OFFLINE nothing else is.

The client does not retry a ranged read, so `fetch` does: after a reset, an answer that ends early, 408, 429 or 5xx
it goes on from the byte that it reached. Large files are served by another host, through signed links: a link is
asked for once per file, kept, never sent our token, and asked for again when it has expired.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, TYPE_CHECKING, TypeVar

from ..errors import HubError, HubUnreachable, NotOnHub, SourceChanged, SurgeryError, nearest
from ..files.opening import regular
from ..files.refs import HubRef, parse_ref
from ..files.safetensors import Header, header_length, parse_header
from ..files.small import check_small
from ..files.symlinks import check_link
from ..lazy.tensor import File
from ..version import __version__
from .client import TRIES, api, as_ours, is_transient, pause, retried, translated

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

FIRST = 1 << 15  # bytes of a safetensors file that are asked for at first: most headers fit
NEAR = 1 << 15  # bytes between two ranges that are fetched along
CONNECTIONS = 12  # headers that are read at once
PROGRESS = 1 << 16  # bytes after which an answer that breaks off has not failed
SMALL = 1 << 20  # bytes of a file that is kept once it was read
CACHE_ALONE = "offline: only the files in the cache are known, and others of this commit may be missing"
SPOOLED = 64  # adapters' files that are kept in temporary files

EXPIRED = (400, 401, 403, 404, 410)  # what a host says of a signed link that is too old
_links: dict[str, str] = {}  # signed links by file


@dataclass(frozen=True, slots=True)
class RemoteFolder:
    """A folder of a repository at one commit; `files` are all that lie in it, by their path from there. See
    `Folder`.
    """

    ref: HubRef
    files: Mapping[str, File]
    note: str = ""  # see `Folder`

    @property
    def path(self) -> str:
        """Its name: `hf://org/name@commit/folder`."""
        return str(self.ref)

    def has(self, name: str) -> bool:
        """See `Folder`."""
        return name in self.files

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`."""
        begin = f"{inside}/" if inside else ""
        return sorted({path[len(begin) :].partition("/")[0] for path in self.files if path.startswith(begin)})

    def walk(self, without: Collection[str] = ()) -> Iterator[str]:
        """See `Folder`."""
        yield from (
            path
            for path in sorted(self.files, key=_by_folder)
            if "/" not in path or path.partition("/")[0] not in without
        )

    def file(self, name: str) -> File:
        """See `Folder`."""
        return self.files[name]

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        check_small(self.files[name].path, self.files[name].size)
        return read_whole(self.files[name])

    def headers(self, names: Sequence[str]) -> Mapping[str, tuple[File, Header]]:
        """See `Folder`. Several at once: each takes one request, or two."""
        stop, pool = threading.Event(), ThreadPoolExecutor(CONNECTIONS, "surgery-headers")
        try:
            found = pool.map(lambda name: _header(self.files[name], stop), names)
            return {name: (self.files[name], header) for name, header in zip(names, found, strict=True)}
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Folder`. Several at once, and those that lie near each other by one request."""
        file, near = self.files[name], _joined(spans)
        stop, pool = threading.Event(), ThreadPoolExecutor(CONNECTIONS, "surgery-ranges")
        try:
            raws = list(pool.map(lambda span: _range(file, span[0], span[1], stop), near))
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
        begins = [start for start, _ in near]
        found = [(bisect_right(begins, start) - 1, start, end) for start, end in spans]
        return [raws[i][start - begins[i] : end - begins[i]] for i, start, end in found]

    def at(self, name: str) -> str:
        """See `Folder`."""
        return f"{self.path}/{name}" if name else self.path


def open_remote(ref: HubRef) -> tuple[RemoteFolder, str]:
    """The folder that `ref` names, pinned to a commit, and ""; or the folder of the file that it names, and the
    file's name.

    Raises NotOnHub where there is no such repository, revision or folder; other HubErrors where the Hub refuses or
    is not reached.
    """
    from huggingface_hub import constants

    pinned, files = _cached_commit(ref) if constants.is_offline_mode() else _commit(ref)
    folder, name = ref.subfolder, ""
    if folder in files:
        folder, _, name = folder.rpartition("/")
    begin = f"{folder}/" if folder else ""
    inside = {path.removeprefix(begin): file for path, file in files.items() if path.startswith(begin)}
    if not inside and folder:
        close = nearest(folder, {path.rpartition("/")[0] for path in files} | set(files))
        tip = f"the nearest paths are {', '.join(close)}" if close else None
        raise NotOnHub("the repository has no such folder or file", where=[str(ref)], help=tip)
    note = f"{CACHE_ALONE}: hf download {ref.repo_id} fetches all" if constants.is_offline_mode() else ""
    return RemoteFolder(replace(pinned, subfolder=folder), inside, note), name


def _commit(ref: HubRef) -> tuple[HubRef, Mapping[str, File]]:
    """The commit that `ref` means now, and its files."""
    from huggingface_hub import constants

    if re.fullmatch("[0-9a-f]{40}", ref.revision or ""):
        return replace(ref, subfolder=""), _listed(ref.repo_id, str(ref.revision))
    sha = _met(
        lambda: api().repo_info(ref.repo_id, revision=ref.revision, timeout=constants.HF_HUB_ETAG_TIMEOUT).sha,
        f"open {ref}",
    )
    assert sha is not None
    return HubRef(ref.repo_id, sha), _listed(ref.repo_id, sha)


def _met(call: Callable[[], T], doing: str) -> T:
    """`retried`, but without a connection at all there is no second try: the name may be that of a folder,
    misspelled.
    """
    from huggingface_hub.utils import httpx

    try:
        with translated(doing):
            return call()
    except HubError as error:
        if isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout) or not is_transient(error.__cause__):
            raise
        _wait(pause(error.__cause__, 0), None)
    return retried(call, doing)


@lru_cache(32)
def _listed(repo_id: str, sha: str) -> Mapping[str, File]:
    """The files of a commit, which never change."""
    from huggingface_hub.hf_api import RepoFile

    pinned = HubRef(repo_id, sha)
    entries = _met(lambda: list(api().list_repo_tree(repo_id, revision=sha, recursive=True)), f"list {pinned}")
    found = [entry for entry in entries if isinstance(entry, RepoFile)]
    return {
        e.path: File(str(replace(pinned, subfolder=e.path)), e.size, 0, e.lfs.sha256 if e.lfs else e.blob_id)
        for e in found
    }


def _cached_commit(ref: HubRef) -> tuple[HubRef, Mapping[str, File]]:
    """The same from the local cache alone, whose layout is documented: refs/, and links from snapshots/ to blobs/."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = os.path.join(constants.HF_HUB_CACHE, repo_folder_name(repo_id=ref.repo_id, repo_type="model"))
    sha = revision = ref.revision or constants.DEFAULT_REVISION
    if os.path.isfile(known := os.path.join(root, "refs", revision)):
        with open(known) as stream:
            sha = stream.read().strip()
    snapshot = os.path.join(root, "snapshots", sha)
    if not os.path.isdir(snapshot):
        tip = f"unset HF_HUB_OFFLINE, or fetch it where there is a network: hf download {ref.repo_id}"
        raise HubUnreachable(
            "offline, and not in the local cache", where=[str(ref), f"cache: {constants.HF_HUB_CACHE}"], help=tip
        )
    pinned, files = HubRef(ref.repo_id, sha), {}
    for here, _, names in os.walk(snapshot):
        for name in names:
            full = os.path.join(here, name)
            check_link(full, snapshot, follow=True)
            path = os.path.relpath(full, snapshot)
            digest = os.path.basename(os.path.realpath(full))
            said = digest if len(digest) in (40, 64) and os.path.islink(full) else ""
            files[path] = File(str(replace(pinned, subfolder=path)), os.path.getsize(full), 0, said)
    return pinned, files


def _by_folder(path: str) -> tuple[tuple[bool, str], ...]:
    """Files before folders, as a walk meets them."""
    *folders, name = path.split("/")
    return (*((True, folder) for folder in folders), (False, name))


def _header(file: File, stop: threading.Event) -> Header:
    begin = _range(file, 0, min(FIRST, file.size), stop)
    length = header_length(begin, file.size, file.path)
    raw = begin[8 : 8 + length]
    return parse_header(raw + _range(file, 8 + len(raw), 8 + length, stop), file.size, file.path)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The spans in order, joined where less lies between them than one request costs."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if found and start - found[-1][1] <= NEAR:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _range(file: File, start: int, end: int, stop: threading.Event | None = None) -> bytes:
    """Bytes [start, end) of a file, from the local cache where it is there."""
    path = _cached(file)
    if path is None:
        return b"".join(fetch(file, start, end, stop))
    with open(path, "rb", opener=regular) as stream:
        stream.seek(start)
        return stream.read(end - start)


def _cached(file: File) -> str | None:
    """Its path in the local cache, where it is there, of the right size."""
    from huggingface_hub import try_to_load_from_cache

    ref = _parsed(file.path)
    found = try_to_load_from_cache(ref.repo_id, ref.subfolder, revision=ref.revision)
    return found if isinstance(found, str) and os.path.getsize(found) == file.size else None


@lru_cache(4096)
def _parsed(path: str) -> HubRef:
    return parse_ref(path)


def local_copy(file: File, stop: threading.Event | None = None) -> int | None:
    """A descriptor of the file in the local cache, or, for one that is to be read whole, of a temporary copy; None
    for others.
    """
    if (path := _cached(file)) is not None:
        return regular(path)
    return os.dup(_spool.fileno(file, stop)) if file.whole else None


def read_whole(file: File) -> bytes:
    """The content of a file. Small ones are read once."""
    return _small(file) if file.size <= SMALL else _range(file, 0, file.size)


@lru_cache(256)
def _small(file: File) -> bytes:
    return _range(file, 0, file.size)


class _Check:
    """A hash over a file's content, held against what the Hub says of it."""

    def __init__(self, file: File) -> None:
        self.file = file
        self.digest = hashlib.sha1(b"blob %d\0" % file.size) if len(file.digest) == 40 else hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        self.digest.update(data)

    def finish(self) -> None:
        """Raise SourceChanged unless these were the file's."""
        if self.file.digest and self.digest.hexdigest() != self.file.digest:
            raise SourceChanged(
                "a file is not what the Hub says it is",
                where=[self.file.path, f"its hash is {self.digest.hexdigest()}, not {self.file.digest}"],
                help="run again; if it stays so, look for a broken copy in the local cache: hf cache verify",
            )


class _Spool:
    """Whole files in temporary ones without a name, which are gone with the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[str, IO[bytes]] = {}

    def fileno(self, file: File, stop: threading.Event | None) -> int:
        """A descriptor of the file's copy, which is fetched and checked at the first call."""
        with self._lock:
            if file.path not in self._files:
                while len(self._files) >= SPOOLED:
                    self._files.pop(next(iter(self._files))).close()
                self._files[file.path] = self._fetched(file, stop)
            return self._files[file.path].fileno()

    def clear(self) -> None:
        """Remove all copies."""
        with self._lock:
            while self._files:
                self._files.popitem()[1].close()

    def _fetched(self, file: File, stop: threading.Event | None) -> IO[bytes]:
        copy = tempfile.TemporaryFile(prefix="surgery-")  # noqa: SIM115 - it stays open
        try:
            for part in fetch(file, 0, file.size, stop):
                copy.write(part)
            copy.flush()
        except BaseException:
            copy.close()
            raise
        return copy


_spool = _Spool()


def fetch(file: File, start: int, end: int, stop: threading.Event | None = None) -> Iterator[bytes]:
    """Bytes [start, end) of a file, part by part: by one request, and by another one for the rest where an answer
    breaks off.

    A file that is fetched from its first byte to its last has the hash that the Hub says, or SourceChanged is raised
    at the end. Raises HubUnreachable after `TRIES` failures in a row, other HubErrors for what no retry mends;
    SurgeryError once `stop` is set.
    """
    check = _Check(file) if (start, end) == (0, file.size) else None
    for part in _fetched(file, start, end, stop):
        if check:
            check.update(part)
        yield part
    if check:
        check.finish()


def _fetched(file: File, start: int, end: int, stop: threading.Event | None) -> Iterator[bytes]:
    at, failures = start, 0
    while at < end:
        begun = at
        try:
            for part in _answer(file, at, end):
                at += len(part)
                yield part
                _check_going(stop)
            if at < end:
                raise _Short(f"the answer ended {end - at} bytes early")
        except Exception as error:
            _links.pop(file.path, None)
            failures = failures + 1 if at - begun < PROGRESS else 1
            if not (isinstance(error, _Short) or is_transient(error)) or failures >= TRIES:
                raise _ours(error, file, at, failures) from error
            _wait(pause(error, failures - 1), stop)


def forget() -> None:
    """Remember nothing of what was read: no listing, no small file, no adapter, no link."""
    _listed.cache_clear()
    _small.cache_clear()
    _links.clear()
    _spool.clear()


class _Short(Exception):
    """An answer that ended, as if all were well, before its last byte."""


def _answer(file: File, start: int, end: int) -> Iterator[bytes]:
    """The parts of one answer to a request for bytes [start, end)."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session, hf_raise_for_status, httpx

    link = _links.get(file.path)
    sent = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"} | ({} if link else _headers())
    timeout = httpx.Timeout(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    with get_session().stream(
        "GET", link or _url(file), headers=sent, timeout=timeout, follow_redirects=True
    ) as response:
        if not (link and response.status_code in EXPIRED):
            if response.is_error:
                response.read()
            hf_raise_for_status(response)
            _check_range(file, response, start, end)
            if response.history and response.url.netloc != response.history[0].url.netloc:
                _links[file.path] = str(response.url)
            yield from _first(response.iter_raw(), end - start)
            return
    _links.pop(file.path, None)
    yield from _answer(file, start, end)


def _first(parts: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    """No more than `nbytes` of them."""
    for part in parts:
        yield part[:nbytes]
        nbytes -= len(part)
        if nbytes <= 0:
            return


def _check_range(file: File, response: httpx2.Response, start: int, end: int) -> None:
    """The answer is of these bytes, and of a file of that size."""
    whole = (
        response.status_code == 200
        and start == 0
        and int(response.headers.get("Content-Length", file.size)) == file.size
    )
    if not whole and response.headers.get("Content-Range") != f"bytes {start}-{end - 1}/{file.size}":
        said = response.headers.get("Content-Range") or f"status {response.status_code}"
        raise SourceChanged(
            "the Hub sends other bytes of a file than were asked for",
            where=[file.path, f"asked for {start}-{end - 1} of {file.size}, got {said}"],
            help="a proxy on the way may not know ranged requests; download the model first: hf download",
        )


def _url(file: File) -> str:
    from huggingface_hub import hf_hub_url

    ref = _parsed(file.path)
    return hf_hub_url(ref.repo_id, ref.subfolder, revision=ref.revision)


def _headers() -> dict[str, str]:
    """Who asks: the token, and the name of this library."""
    from huggingface_hub.utils import build_hf_headers

    return build_hf_headers(token=api().token, library_name="surgery", library_version=__version__)


def _ours(error: Exception, file: File, at: int, failures: int) -> Exception:
    """The error as one of ours; what is no error of the Hub's stays what it is."""
    where = [f"{file.path}: byte {at}"]
    if isinstance(error, _Short):
        return HubUnreachable(
            f"cannot read from the Hub: {failures} times in a row {error}", where=where, help="run again later"
        )
    return as_ours(error, "read from the Hub", where) or error


def _wait(seconds: float, stop: threading.Event | None) -> None:
    (stop or threading.Event()).wait(seconds)
    _check_going(stop)


def _check_going(stop: threading.Event | None) -> None:
    if stop and stop.is_set():
        raise SurgeryError("stopped while reading from the Hub")
