"""Folders: what lies in one, wherever it is. A local path, or a place on the Hub that is pinned to a commit.

`locate` decides which: what exists here wins, `hf://…` and `org/name…` are on the Hub. Nothing is read to list a
folder, and the Hub's client is loaded only for a folder on the Hub.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..errors import HubError, NotACheckpoint
from ..lazy.tensor import File
from ..step import Place, Recipe
from .opening import regular, regular_status, unreadable_file
from .refs import has_scheme, is_ref, name_of_url, parse_ref
from .safetensors import Header, read_header
from .small import check_small
from .symlinks import check_link, followed, leads_out
from .walking import unreadable, walked

PathLike = str | os.PathLike[str]


class Folder(Protocol):
    """Files by their path in the folder, with `/` between its parts."""

    @property
    def path(self) -> str:
        """Its name in messages, and for `locate`: absolute, or `hf://org/name@commit/folder`."""

    @property
    def note(self) -> str:
        """What a user should know of it; "" where all is known."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name; it may be one that cannot be read."""

    def names(self, inside: str = "") -> list[str]:
        """Files and folders directly in it, or in its folder `inside`; none where that is no folder."""

    def walk(self, without: Collection[str] = ()) -> Iterator[str]:
        """Every file, folder by folder, but for those in its own folders called as one of `without`."""

    def file(self, name: str) -> File:
        """The file, as it is now."""

    def read(self, name: str) -> bytes:
        """The whole content of a small file."""

    def headers(self, names: Sequence[str]) -> Mapping[str, tuple[File, Header]]:
        """The checked headers of safetensors files, by name, in the order of `names`."""

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, end) of a file, for each of `spans`."""

    def at(self, name: str) -> str:
        """The path of what is called `name` in it."""


@dataclass(frozen=True, slots=True)
class LocalFolder:
    """A folder on a disk of this machine; `path` is absolute. Links in it may not lead out of it, unless `follow`:
    `symlinks.py`.
    """

    path: str
    follow: bool = field(default_factory=followed)

    @property
    def note(self) -> str:
        """See `Folder`."""
        return ""

    def has(self, name: str) -> bool:
        """See `Folder`."""
        return os.path.lexists(self.at(name)) and not os.path.isdir(self.at(name))

    def names(self, inside: str = "") -> list[str]:
        """See `Folder`. A link that leads out is no folder in it."""
        place = self.at(inside)
        here = os.path.isdir(place) and (self.follow or not leads_out(place, self.path))
        try:
            return sorted(os.listdir(place)) if here else []
        except OSError as error:
            raise unreadable(error, place) from error

    def walk(self, without: Collection[str] = ()) -> Iterator[str]:
        """See `Folder`. Links are followed: `walking.py`."""
        return walked(self.path, without, follow=self.follow)

    def file(self, name: str) -> File:
        """See `Folder`."""
        path = self._checked(name)
        try:
            status = regular_status(path)
        except OSError as error:
            raise unreadable_file(error, path) from error
        return File(path, status.st_size, status.st_mtime_ns)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        path = self._checked(name)
        try:
            with open(path, "rb", opener=regular) as stream:
                check_small(path, size := os.fstat(stream.fileno()).st_size)
                return stream.read(size)
        except OSError as error:
            raise unreadable_file(error, path) from error

    def headers(self, names: Sequence[str]) -> Mapping[str, tuple[File, Header]]:
        """See `Folder`."""
        return {name: read_header(self._checked(name)) for name in names}

    def ranges(self, name: str, spans: Sequence[tuple[int, int]]) -> list[bytes]:
        """See `Folder`."""
        with open(self._checked(name), "rb", opener=regular) as stream:
            return [os.pread(stream.fileno(), end - start, start) for start, end in spans]

    def at(self, name: str) -> str:
        """See `Folder`."""
        return os.path.join(self.path, name) if name else self.path

    def _checked(self, name: str) -> str:
        """The path of a file that may be opened, as far as links decide it."""
        check_link(self.at(name), self.path, follow=self.follow)
        return self.at(name)


def absolute(path: PathLike) -> str:
    """The absolute path of what a user calls `path`; a leading `~` is the home folder, as a shell has it."""
    try:
        return os.path.abspath(os.path.expanduser(path))
    except FileNotFoundError as error:
        what, tip = "the working folder is not there any more", "change into one that is, or give the whole path"
        raise NotACheckpoint(what, where=[os.fsdecode(path)], help=tip) from error


def locate(path: PathLike | Folder) -> tuple[Folder, str]:
    """The folder at `path` and "", or the folder of the file there and the file's name.

    Raises NotACheckpoint where nothing is there; a HubError where the Hub has it not, or does not answer.
    """
    if not isinstance(path, str | os.PathLike):
        return path, ""
    text = os.fspath(path)
    full = absolute(text)
    if has_scheme(text):
        return _on_hub(text)
    if os.path.isdir(full):
        return LocalFolder(full), ""
    if os.path.lexists(full):
        folder, name = LocalFolder(os.path.dirname(full)), os.path.basename(full)
        folder.file(name)  # a word on what it is, where it cannot be read
        return folder, name
    if not is_ref(text):
        called = name_of_url(text)
        tip = f"write {called}" if called else "a model on the Hub is called org/name, or hf://org/name"
        raise NotACheckpoint("no such file or folder", where=[text if called else full], help=tip)
    try:
        return _on_hub(text)
    except HubError as error:
        where = [
            *error.where,
            f"{full}: no such file or folder here, so it was read as the name of a repository on the Hub",
        ]
        raise type(error)(error.what, where=where, help=error.help) from error


def opened_as(folder: Folder, name: str, **said: Any) -> Recipe:
    """The recipe of what was opened in the folder, or is its file `name`, with what was `said` of it."""
    told = {key: value for key, value in said.items() if value not in (None, "")}
    return Recipe(Place(folder.at(name) if name else folder.path, told))


def folder_at(path: PathLike | Folder) -> Folder | None:
    """The folder at `path`; None where a file is there, or nothing at all here. Raises HubError as `locate` does."""
    try:
        folder, name = locate(path)
    except NotACheckpoint:
        return None
    return None if name else folder


def _on_hub(text: str) -> tuple[Folder, str]:
    from ..hub.remote import open_remote

    return open_remote(parse_ref(text))
