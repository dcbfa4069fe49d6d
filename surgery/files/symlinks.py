"""Where links in a folder may lead: anywhere inside it; in a snapshot of the Hub's cache, to its repository's blobs,
and to those that the cache's repositories share, too.

What a folder from elsewhere links to outside would be copied into an output, and pushed with it. So a link that
leads out is refused by name, unless `following_links` is asked for. A link that leads nowhere is named as well, with
how to fetch its file.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass

from ..errors import FormatError, listed
from .entries import entries
from .meant import meaning

_SHARED = re.compile(r"blobs/(?P<part>[0-9a-f]{2})/(?P<hash>[0-9a-f]{64})")
_FOLLOW: ContextVar[bool] = ContextVar("follow links", default=False)
ASK = "--follow-links, in Python `with surgery.following_links():`"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A folder of the Hub's cache: `root` is its repository's folder, `models--org--name`, where links may lead."""

    root: str
    repo_id: str
    commit: str

    @property
    def fetch(self) -> str:
        """The command that fetches what is missing."""
        return f"hf download {self.repo_id} --revision {self.commit}"


def following_links(follow: bool = True) -> AbstractContextManager[None]:
    """Inside, links are followed wherever they lead: for folders whose links you know. To be held around opening and
    writing.
    """
    return meaning(_FOLLOW, follow)


def followed() -> bool:
    """Whether links are followed out of folders now."""
    return _FOLLOW.get()


def snapshot_of(path: str) -> Snapshot | None:
    """The snapshot of the Hub's cache that `path` is, or lies in."""
    parts = os.path.realpath(path).split(os.sep)
    for at in range(len(parts) - 2):
        if parts[at].startswith("models--") and parts[at + 1] == "snapshots":
            return Snapshot(
                os.sep.join(parts[: at + 1]), parts[at].removeprefix("models--").replace("--", "/"), parts[at + 2]
            )
    return None


def leads_out(path: str, folder: str) -> bool:
    """Whether `path`, in `folder`, is somewhere that links in the folder may not lead."""
    real, room = os.path.realpath(path), _room(folder)
    return not (_within(real, room) or (snapshot_of(folder) and _is_shared_blob(real, os.path.dirname(room))))


def check_link(path: str, folder: str, *, follow: bool) -> None:
    """Raise FormatError where `path`, in `folder`, is or passes a link that leads nowhere, or, unless `follow`, out
    of it.
    """
    if os.path.lexists(path) and not os.path.exists(path):
        raise _nowhere(path)
    if not follow and leads_out(path, folder):
        raise _out(path, folder)


def _room(folder: str) -> str:
    snapshot = snapshot_of(folder)
    return snapshot.root if snapshot else os.path.realpath(folder)


def _is_shared_blob(real: str, cache: str) -> bool:
    """Whether it is a file of the store that the repositories of the Hub's cache share: huggingface_hub 2.4 keeps
    Xet's there.
    """
    found = _SHARED.fullmatch(os.path.relpath(real, cache))
    return found is not None and found["hash"].startswith(found["part"])


def _within(real: str, room: str) -> bool:
    return real == room or real.startswith(room.rstrip(os.sep) + os.sep)


def _nowhere(path: str) -> FormatError:
    snapshot = snapshot_of(os.path.dirname(path))
    tip = (
        f"the cache has lost its file; fetch it again: {snapshot.fetch}" if snapshot else "remove it, or mend the link"
    )
    return FormatError(
        "a link leads nowhere", where=[f"{path} -> {os.readlink(path)}" if os.path.islink(path) else path], help=tip
    )


def _out(path: str, folder: str) -> FormatError:
    """The error for `path`, with all other links of the folder that lead out of it."""
    others = [one for one in _links(folder) if leads_out(one, folder)]
    first = next((one for one in others if path == one or path.startswith(one + os.sep)), path)
    found = [first, *(one for one in others if one != first)]
    rows = [
        f"{one} -> {os.readlink(one)}" if os.path.islink(one) else f"{one}: {os.path.realpath(one)}" for one in found
    ]
    return FormatError(
        f"{len(found)} links lead out of the folder" if len(found) > 1 else "a link leads out of the folder",
        where=listed(rows),
        help=(
            f"what lies there would become part of the result; if that is meant: {ASK}; else remove the link, or put a"
            " copy in its place"
        ),
    )


def _links(folder: str) -> list[str]:
    """Every link in the folder, and in the folders in it."""
    return sorted(entry.path for entry in entries(folder) if entry.is_symlink())
