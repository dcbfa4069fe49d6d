"""Files in and out: LFS uploads, in one piece or in parts, and downloads, from here or from the second origin."""

from __future__ import annotations

import hashlib
import json
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from .store import Blob, Repo
from .wire import Answer, Refused, Request, as_json

if TYPE_CHECKING:
    from .server import Hub


def batch(hub: Hub, request: Request, repo: Repo) -> Answer:
    """Where each object is to be sent; no actions where it is here already."""
    asked = request.json()
    parts = hub.part_size and "multipart" in asked["transfers"]
    objects = [
        _actions(hub, repo, o["oid"], o["size"], multipart=bool(parts and o["size"] > hub.part_size))
        for o in asked["objects"]
    ]
    return as_json({"transfer": "multipart" if parts else "basic", "objects": objects})


def _actions(hub: Hub, repo: Repo, oid: str, size: int, *, multipart: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"oid": oid, "size": size}
    if oid in repo.objects:
        return row
    stem = f"{hub.cdn.url}/upload/{repo.name}/{oid}"
    upload: dict[str, Any] = {"href": stem, "header": {}}
    if multipart:
        count = ceil(size / hub.part_size)
        urls = {f"{i:05d}": f"{stem}?part={i}" for i in range(1, count + 1)}
        upload = {
            "href": f"{hub.endpoint}/complete/{repo.name}/{oid}",
            "header": {"chunk_size": str(hub.part_size), **urls},
        }
    return row | {"actions": {"upload": upload, "verify": {"href": f"{hub.endpoint}/verify/{repo.name}/{oid}"}}}


def upload(hub: Hub, request: Request, repo: Repo, oid: str) -> Answer:
    """One object, or one part of it, streamed to a file. An object becomes known when its hash is what it should be."""
    number = request.query.get("part")
    path = hub.root / f"{oid}{'.' + number if number else ''}"
    digest = _receive(request, path)
    if number is None:
        _known(repo, path, digest, oid)
    return Answer(headers={"ETag": f'"{digest}"'})


def _receive(request: Request, path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as stream:
        for piece in request.body:
            digest.update(piece)
            stream.write(piece)
    return digest.hexdigest()


def _known(repo: Repo, path: Path, digest: str, oid: str) -> None:
    if digest != oid:
        raise Refused(400, f"the object is {digest}, announced as {oid}")
    repo.objects[oid] = Blob(path, lfs=True, said=digest)


def complete(hub: Hub, request: Request, repo: Repo, oid: str) -> Answer:
    parts = sorted(json.loads(request.read())["parts"], key=lambda p: p["partNumber"])
    path, digest = hub.root / oid, hashlib.sha256()
    with open(path, "wb") as stream:
        for part in parts:
            piece = hub.root / f"{oid}.{part['partNumber']}"
            data = piece.read_bytes()
            if part["etag"] != f'"{hashlib.sha256(data).hexdigest()}"':
                raise Refused(400, f"part {part['partNumber']} has another etag")
            digest.update(data)
            stream.write(data)
            piece.unlink()
    _known(repo, path, digest.hexdigest(), oid)
    return as_json({})


def verify(hub: Hub, request: Request, repo: Repo, oid: str) -> Answer:
    asked = request.json()
    if oid not in repo.objects or repo.objects[oid].size != asked["size"]:
        raise Refused(404, "no such object")
    return as_json({})


def resolve(hub: Hub, request: Request, repo: Repo, revision: str, path: str) -> Answer:
    """A file's bytes, or the way to them: large ones come from the second origin if that is asked for."""
    commit = hub.commit(repo, revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        message = "Entry not found"
        return as_json(
            {"error": message},
            status=404,
            headers=headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": message},
        )
    headers["ETag"] = f'"{blob.etag}"'
    if blob.lfs:
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.xet:
        auth = f"{hub.endpoint}/api/models/{repo.name}/xet-read-token/{commit.sha}"
        headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{auth}>; rel="xet-auth"'}
    if blob.lfs and hub.redirect:
        signed = f"{hub.cdn.url}/file/{repo.name}/{commit.sha}/{quote(path)}?signature={hub.signature}"
        return Answer(302, b"", headers | {"Location": signed})
    return Answer(200, blob, headers | {"Content-Type": "application/octet-stream"})


def fetch(hub: Hub, request: Request, repo: Repo, revision: str, path: str) -> Answer:
    """From the second origin: whoever has the signed link may read, until it expires."""
    if request.query.get("signature") != hub.signature:
        return Answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")
    if request.token:
        return Answer(
            400, b"<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
        )
    blob = repo.commits[revision].files[path]
    return Answer(200, blob, {"ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"})
