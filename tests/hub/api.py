"""The API: accounts, repositories, trees, commits, branches, tags, pull requests."""

from __future__ import annotations

import base64
import json
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from .cards import card_errors
from .store import ATTRIBUTES, Blob, Commit, Pull, Repo, folders_of, is_lfs
from .wire import Answer, Refused, Request, as_json

if TYPE_CHECKING:
    from .server import Hub

DATE = "2026-01-01T00:00:00.000Z"


def whoami(hub: Hub, request: Request) -> Answer:
    user = hub.user(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    orgs = [{"name": name, "type": "org"} for name in user.orgs]
    token = {"displayName": "t", "role": "write" if user.write else "read"}
    return as_json(
        {"type": "user", "name": user.name, "orgs": orgs, "auth": {"type": "access_token", "accessToken": token}}
    )


def create(hub: Hub, request: Request) -> Answer:
    asked = request.json()
    user = hub.user(request)
    if user is None:
        raise Refused(401, "Invalid username or password.")
    space = asked.get("organization") or user.name
    name = f"{space}/{asked['name']}"
    if not user.write or space not in (user.name, *user.orgs):
        raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{space}"')
    if name in hub.repos:
        raise Refused(409, "You already created this model repo", url=f"{hub.endpoint}/{name}")
    hub.create(name, private=asked.get("visibility") == "private")
    return as_json({"url": f"{hub.endpoint}/{name}", "name": name})


def delete(hub: Hub, request: Request) -> Answer:
    asked = request.json()
    user = hub.user(request)
    name = f"{asked.get('organization') or (user.name if user else '')}/{asked['name']}"
    hub.repo(request, name, write=True)
    del hub.repos[name]
    return as_json({})


def validate_yaml(hub: Hub, request: Request) -> Answer:
    wrong = [{"message": text} for text in card_errors(request.json()["content"])]
    return as_json({"errors": wrong, "warnings": []}, status=400 if wrong else 200)


def info(hub: Hub, request: Request, repo: Repo, revision: str = "main") -> Answer:
    commit = hub.commit(repo, revision)
    siblings = [
        {"rfilename": path, "size": blob.size, "blobId": blob.oid, **({"lfs": lfs_of(blob)} if blob.lfs else {})}
        if request.query.get("blobs")
        else {"rfilename": path}
        for path, blob in sorted(commit.files.items())
    ]
    return as_json(
        {
            "_id": "0" * 24,
            "id": repo.name,
            "modelId": repo.name,
            "author": repo.name.split("/")[0],
            "sha": commit.sha,
            "private": repo.private,
            "gated": "manual" if repo.gated else False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "createdAt": DATE,
            "lastModified": DATE,
            "siblings": siblings,
            **({"cardData": card} if (card := _card(commit)) else {}),
        }
    )


def _card(commit: Commit) -> dict[str, Any]:
    import yaml

    text = commit.files["README.md"].read().decode() if "README.md" in commit.files else ""
    return yaml.safe_load(text.split("---")[1]) or {} if text.startswith("---") else {}


def refs(hub: Hub, request: Request, repo: Repo) -> Answer:
    def rows(names: dict[str, str], stem: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{stem}{name}", "targetCommit": sha} for name, sha in names.items()]

    pulls = {name: sha for name, sha in repo.branches.items() if name.startswith("refs/pr/")}
    branches = {name: sha for name, sha in repo.branches.items() if name not in pulls}
    found: dict[str, Any] = {
        "branches": rows(branches, "refs/heads/"),
        "tags": rows(repo.tags, "refs/tags/"),
        "converts": [],
    }
    if request.query.get("include_prs"):
        found["pullRequests"] = rows(pulls, "")
    return as_json(found)


def lfs_of(blob: Blob) -> dict[str, Any]:
    return {"oid": blob.sha256, "sha256": blob.sha256, "size": blob.size, "pointerSize": len(blob.pointer)}


def _entry(path: str, commit: Commit) -> dict[str, Any]:
    blob = commit.files.get(path)
    if blob is None:
        return {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    more = {"lfs": lfs_of(blob)} if blob.lfs else {}
    more |= {"xetHash": blob.xet} if blob.xet else {}
    return {"type": "file", "path": path, "oid": blob.oid, "size": blob.size, **more}


def tree(hub: Hub, request: Request, repo: Repo, revision: str, folder: str = "") -> Answer:
    """In pages of `hub.page` entries, with a link to the next."""
    commit = hub.commit(repo, revision)
    below = f"{folder}/" if folder else ""
    paths = [p for p in sorted({*folders_of(commit.files), *commit.files}) if p.startswith(below)]
    if folder and not paths:
        raise Refused(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
    if request.query.get("recursive", "").lower() not in ("true", "1"):
        paths = [p for p in paths if "/" not in p[len(below) :]]
    start = int(request.query.get("cursor", 0))
    stop = start + hub.page
    query = "&".join(f"{k}={v}" for k, v in {**request.query, "cursor": str(stop)}.items())
    link = {"Link": f'<{hub.endpoint}{request.path}?{query}>; rel="next"'} if stop < len(paths) else {}
    return as_json([_entry(path, commit) for path in paths[start:stop]], headers=link)


def paths_info(hub: Hub, request: Request, repo: Repo, revision: str) -> Answer:
    commit = hub.commit(repo, revision)
    asked = parse_qs(request.read().decode()).get("paths", [])
    known = {*commit.files, *folders_of(commit.files)}
    return as_json([_entry(path, commit) for path in asked if path in known])


def commits(hub: Hub, request: Request, repo: Repo, revision: str) -> Answer:
    hub.commit(repo, revision)
    return as_json(
        [
            {"id": c.sha, "title": c.title, "message": c.description, "date": DATE, "authors": [{"user": c.author}]}
            for c in repo.history(revision)
        ]
    )


def add_branch(hub: Hub, request: Request, repo: Repo, branch: str) -> Answer:
    start = (request.json() or {}).get("startingPoint")
    if branch in repo.branches:
        raise Refused(409, f"Reference already exists: refs/heads/{branch}")
    repo.branches[branch] = hub.commit(repo, start or "main").sha
    return as_json({})


def remove_branch(hub: Hub, request: Request, repo: Repo, branch: str) -> Answer:
    if branch not in repo.branches:
        raise Refused(404, "Invalid rev id", "RevisionNotFound")
    del repo.branches[branch]
    return as_json({})


def add_tag(hub: Hub, request: Request, repo: Repo, revision: str) -> Answer:
    tag = request.json()["tag"]
    if tag in repo.tags:
        raise Refused(409, f"Tag reference exists already: {tag}")
    repo.tags[tag] = hub.commit(repo, revision).sha
    return as_json({})


def remove_tag(hub: Hub, request: Request, repo: Repo, tag: str) -> Answer:
    if tag not in repo.tags:
        raise Refused(404, "Invalid rev id", "RevisionNotFound")
    del repo.tags[tag]
    return as_json({})


def preupload(hub: Hub, request: Request, repo: Repo, revision: str) -> Answer:
    """How each file is to be sent, and what the revision holds under its name now."""
    held, asked = hub.commit(repo, revision).files, request.json()
    ignored = (asked.get("gitIgnore") or (held[".gitignore"].read().decode() if ".gitignore" in held else "")).split()
    return as_json(
        {
            "files": [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if is_lfs(f["path"], f["size"]) else "regular",
                    "shouldIgnore": any(fnmatch(f["path"], pattern) for pattern in ignored),
                    **({"oid": held[f["path"]].etag} if f["path"] in held else {}),
                }
                for f in asked["files"]
            ],
            "commitOid": hub.commit(repo, revision).sha,
        }
    )


def commit(hub: Hub, request: Request, repo: Repo, revision: str) -> Answer:
    """All lines of the request in one commit, or none."""
    lines = [json.loads(line) for line in request.read().splitlines()]
    head, pull = lines[0]["value"], request.query.get("create_pr") == "1"
    with hub.lock:
        now = hub.commit(repo, revision)
        if revision not in repo.branches:
            raise Refused(404, "Invalid rev id", "RevisionNotFound")
        if head.get("parentCommit", now.sha) != now.sha:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = _changed(repo, dict(now.files), lines[1:])
        if "README.md" in files and (wrong := card_errors(files["README.md"].read().decode())):
            raise Refused(400, "\n".join(wrong))
        branch, number = revision, 0
        if pull:
            number = _open(repo, head["summary"], revision)
            branch = f"refs/pr/{number}"
        user = hub.user(request)
        made = repo.commit(branch, files, head["summary"], head.get("description", ""), user.name if user else "")
    url = f"{hub.endpoint}/{repo.name}/discussions/{number}" if pull else ""
    return as_json(
        {
            "success": True,
            "commitOid": made.sha,
            "commitUrl": f"{hub.endpoint}/{repo.name}/commit/{made.sha}",
            "pullRequestUrl": url,
        }
    )


def _changed(repo: Repo, files: dict[str, Blob], lines: list[Any]) -> dict[str, Blob]:
    for line in lines:
        value = line["value"]
        path = value["path"]
        match line["key"]:
            case "file":
                files[path] = Blob(base64.b64decode(value["content"]))
            case "lfsFile":
                blob = repo.objects.get(value["oid"])
                if blob is None or blob.size != value.get("size", blob.size):
                    raise Refused(
                        400,
                        f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {path}",
                    )
                files[path] = blob
            case "deletedFile":
                if path not in files:
                    raise Refused(400, f"cannot delete {path}: no such file")
                del files[path]
            case "deletedFolder":
                for below in [p for p in files if p.startswith(path.rstrip("/") + "/")]:
                    del files[below]
            case other:
                raise Refused(400, f"unknown operation {other}")
    return files


def _open(repo: Repo, title: str, base: str) -> int:
    number = max(repo.pulls, default=0) + 1
    repo.pulls[number] = Pull(number, title, base)
    repo.branches[f"refs/pr/{number}"] = repo.branches[base]
    return number


def discuss(hub: Hub, request: Request, repo: Repo) -> Answer:
    asked = request.json()
    number = _open(repo, asked["title"], "main")
    repo.pulls[number].status = "draft"
    return as_json({"num": number, "url": f"{hub.endpoint}/{repo.name}/discussions/{number}"})


def discussions(hub: Hub, request: Request, repo: Repo) -> Answer:
    rows = [_discussion(repo, pull) for pull in repo.pulls.values()]
    return as_json({"discussions": rows, "count": len(rows), "start": 0})


def discussion(hub: Hub, request: Request, repo: Repo, number: str) -> Answer:
    pull = _pull(repo, number)
    return as_json(
        _discussion(repo, pull)
        | {"events": [], "changes": {"base": f"refs/heads/{pull.base}"}, "filesWithConflicts": [], "diff": ""}
    )


def merge(hub: Hub, request: Request, repo: Repo, number: str) -> Answer:
    pull = _pull(repo, number)
    source = repo.commits[repo.branches[f"refs/pr/{number}"]]
    repo.commit(pull.base, source.files, f"{pull.title} (#{number})")
    pull.status = "merged"
    return as_json({"newStatus": "merged"})


def status(hub: Hub, request: Request, repo: Repo, number: str) -> Answer:
    _pull(repo, number).status = request.json()["status"]
    event = {"id": "1", "type": "status-change", "createdAt": DATE, "author": {"name": "someone"}}
    return as_json({"newStatus": event | {"data": {"status": _pull(repo, number).status}}})


def _pull(repo: Repo, number: str) -> Pull:
    if int(number) not in repo.pulls:
        raise Refused(404, "no such discussion")
    return repo.pulls[int(number)]


def _discussion(repo: Repo, pull: Pull) -> dict[str, Any]:
    return {
        "num": pull.number,
        "title": pull.title,
        "status": pull.status,
        "createdAt": DATE,
        "isPullRequest": True,
        "author": {"name": "someone"},
        "repo": {"name": repo.name, "type": "model"},
    }


def new_repo(name: str, *, private: bool) -> Repo:
    """As the Hub makes it: one commit, with the patterns of LFS."""
    repo = Repo(name, private)
    repo.commit("main", {".gitattributes": Blob(ATTRIBUTES)}, "initial commit")
    return repo


_REV = r"(?P<revision>[^/]+)"
_NUM = r"(?P<number>\d+)"
# Method, the rest of /api/models/{id}, the function, and whether it needs the right to write.
OF_REPO = (
    ("GET", "", info, False),
    ("GET", f"/revision/{_REV}", info, False),
    ("GET", "/refs", refs, False),
    ("GET", f"/tree/{_REV}(?:/(?P<folder>.+))?", tree, False),
    ("POST", f"/paths-info/{_REV}", paths_info, False),
    ("GET", f"/commits/{_REV}", commits, False),
    ("POST", r"/branch/(?P<branch>[^/]+)", add_branch, True),
    ("DELETE", r"/branch/(?P<branch>[^/]+)", remove_branch, True),
    ("POST", f"/tag/{_REV}", add_tag, True),
    ("DELETE", r"/tag/(?P<tag>[^/]+)", remove_tag, True),
    ("POST", f"/preupload/{_REV}", preupload, True),
    ("POST", f"/commit/{_REV}", commit, True),
    ("POST", "/discussions", discuss, True),
    ("GET", "/discussions", discussions, False),
    ("GET", f"/discussions/{_NUM}", discussion, False),
    ("POST", f"/discussions/{_NUM}/merge", merge, True),
    ("POST", f"/discussions/{_NUM}/status", status, True),
)
OF_ALL = (
    ("GET", "/api/whoami-v2", whoami),
    ("POST", "/api/repos/create", create),
    ("DELETE", "/api/repos/delete", delete),
    ("POST", "/api/validate-yaml", validate_yaml),
)
