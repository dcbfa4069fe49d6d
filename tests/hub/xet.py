"""Xet: the storage by chunks to which the client uploads unless that is switched off.

A *xorb* is a row of chunks, each behind a header of eight bytes; a *shard* says which chunks of which xorbs make up
which file. Read as published with xet-core, without compression, which the client is told not to use. Contents are
put together when their shard arrives, and their sha256 is checked.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .store import Blob, Repo
from .wire import Answer, Refused, Request, as_json

if TYPE_CHECKING:
    from .server import Hub

_ROW = 48  # bytes of every row of a shard
_END = b"\xff" * 32
_VERIFIED, _METADATA = 1 << 31, 1 << 30


@dataclass(frozen=True)
class Xorb:
    """Chunks on disk: `starts` are where each one's header begins, and where the last one ends."""

    path: Path
    starts: tuple[int, ...]

    def chunks(self, first: int, stop: int) -> Iterator[bytes]:
        with open(self.path, "rb") as stream:
            for i in range(first, stop):
                stream.seek(self.starts[i] + 8)
                yield stream.read(self.starts[i + 1] - self.starts[i] - 8)


@dataclass(frozen=True)
class Term:
    """Chunks [first, stop) of a xorb, `size` bytes when unpacked."""

    xorb: str
    first: int
    stop: int
    size: int


@dataclass
class Store:
    """What was uploaded: xorbs, and files as terms, by their hashes."""

    xorbs: dict[str, Xorb] = field(default_factory=dict)
    files: dict[str, tuple[Term, ...]] = field(default_factory=dict)


def token(hub: Hub, request: Request, repo: Repo, revision: str = "") -> Answer:
    """A short-lived token of Xet's own, and where its storage is; twice, since both halves of the client ask."""
    expires = int(time.time()) + 3600
    access = f"xet:{repo.name}"
    headers = {"X-Xet-Cas-Url": hub.cdn.url, "X-Xet-Access-Token": access, "X-Xet-Token-Expiration": str(expires)}
    return as_json({"accessToken": access, "exp": expires, "casUrl": hub.cdn.url}, headers=headers)


def _repo(hub: Hub, request: Request) -> Repo:
    """The repository that the token is for. The Hub's own token is none here."""
    kind, _, name = request.token.partition(":")
    if kind != "xet" or name not in hub.repos:
        raise Refused(401, "not a token of this storage")
    return hub.repos[name]


def put_xorb(hub: Hub, request: Request, hash: str) -> Answer:
    _repo(hub, request)
    known = hash in hub.store.xorbs
    path = hub.root / f"{hash}.xorb"
    with open(path, "wb") as stream:
        for piece in request.body:
            stream.write(piece)
    hub.store.xorbs[hash] = Xorb(path, _starts(path))
    return as_json({"was_inserted": not known})


def _starts(path: Path) -> tuple[int, ...]:
    """Chunk header: version 0, packed size (3 bytes), scheme, unpacked size (3 bytes). What follows the chunks is a
    footer.
    """
    size, starts = path.stat().st_size, [0]
    with open(path, "rb") as stream:
        while starts[-1] + 8 <= size:
            stream.seek(starts[-1])
            head = stream.read(8)
            packed, unpacked = int.from_bytes(head[1:4], "little"), int.from_bytes(head[5:8], "little")
            if head[0] != 0:
                break
            if head[4] != 0 or packed != unpacked:
                raise Refused(400, f"a chunk is compressed by scheme {head[4]}")
            starts.append(starts[-1] + 8 + packed)
    return tuple(starts)


def put_shard(hub: Hub, request: Request) -> Answer:
    repo = _repo(hub, request)
    for name, terms, sha256 in _files(request.read()):
        hub.store.files[name] = terms
        path, digest = hub.root / f"{name}.xet", hashlib.sha256()
        with open(path, "wb") as stream:
            for term in terms:
                for chunk in hub.store.xorbs[term.xorb].chunks(term.first, term.stop):
                    digest.update(chunk)
                    stream.write(chunk)
        if digest.hexdigest() != sha256:
            raise Refused(400, f"the content is {digest.hexdigest()}, announced as {sha256}")
        repo.objects[sha256] = Blob(path, lfs=True, said=sha256, xet=name)
    return as_json({"result": 1})


def _files(shard: bytes) -> Iterator[tuple[str, tuple[Term, ...], str]]:
    """The files of a shard: hash, terms, sha256."""
    at = _ROW
    while (head := shard[at : at + _ROW])[:32] != _END:
        flags, count = struct.unpack_from("<II", head, 32)
        rows = [shard[at + _ROW * i : at + _ROW * (i + 1)] for i in range(1, count + 1)]
        at += _ROW * (1 + count * (2 if flags & _VERIFIED else 1))
        if not flags & _METADATA:
            raise Refused(400, "a file without its sha256")
        terms = tuple(
            Term(_hex(r), first, stop, size)
            for r in rows
            for _, size, first, stop in [struct.unpack_from("<IIII", r, 32)]
        )
        yield _hex(head), terms, _hex(shard[at : at + _ROW])
        at += _ROW


def _hex(row: bytes) -> str:
    """A hash as text: four little-endian numbers of 64 bits."""
    return "".join(f"{n:016x}" for n in struct.unpack_from("<4Q", row))


def reconstruction(hub: Hub, request: Request, hash: str) -> Answer:
    """Which chunks of which xorbs make up a range of a file, and where they are."""
    _repo(hub, request)
    if hash not in hub.store.files:
        raise Refused(404, "no such file")
    terms = hub.store.files[hash]
    total = sum(t.size for t in terms)
    first, _, last = request.headers.get("Range", f"bytes=0-{total - 1}").removeprefix("bytes=").partition("-")
    start, stop = int(first), min(int(last or total - 1) + 1, total)
    if start >= total:
        return Answer(416)
    needed, at, skipped = [], 0, 0
    for term in terms:
        if at < stop and at + term.size > start:
            skipped = start - at if not needed else skipped
            needed.append(term)
        at += term.size
    rows = [{"hash": t.xorb, "unpacked_length": t.size, "range": {"start": t.first, "end": t.stop}} for t in needed]
    places = {name: [_place(hub, name, [t for t in needed if t.xorb == name])] for name in {t.xorb for t in needed}}
    return as_json({"offset_into_first_range": skipped, "terms": rows, "fetch_info": places})


def _place(hub: Hub, name: str, terms: list[Term]) -> dict[str, Any]:
    """One range of the xorb that covers all terms, since the client takes a term's bytes from one range only."""
    first, stop = min(t.first for t in terms), max(t.stop for t in terms)
    starts = hub.store.xorbs[name].starts
    place = {"start": starts[first], "end": starts[stop] - 1}
    return {"range": {"start": first, "end": stop}, "url": f"{hub.cdn.url}/xorb/{name}", "url_range": place}


def get_xorb(hub: Hub, request: Request, hash: str) -> Answer:
    return Answer(200, Blob(hub.store.xorbs[hash].path))


_HASH = "(?P<hash>[0-9a-f]{64})"
OF_REPO = (
    ("GET", "/xet-write-token/(?P<revision>[^/]+)", token, True),
    ("GET", "/xet-read-token/(?P<revision>[^/]+)", token, False),
)
OF_CAS = (
    ("POST", f"/v1/xorbs/[^/]+/{_HASH}", put_xorb),
    ("POST", "/v1/shards", put_shard),
    ("GET", f"/v1/reconstructions/{_HASH}", reconstruction),
    ("GET", f"/xorb/{_HASH}", get_xorb),
)
