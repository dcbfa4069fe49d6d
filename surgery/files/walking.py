"""Every file in a folder of this disk, as a copy that follows links has them: what a link to a folder leads to lies at
the link's path as well.

A link to a folder above is passed over, since what is there is carried from there. Folders that link to each other
have as many paths as there are orders to visit them in: beyond `MOST` for one folder the links are refused, so that a
walk is bounded, and leaves nothing out in silence.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Collection, Iterator

from ..errors import FormatError
from .symlinks import check_link

MOST = 1000  # paths of one folder
_Place = tuple[int, int]


def walked(top: str, without: Collection[str] = (), *, follow: bool = False) -> Iterator[str]:
    """Every file by its path in the folder `top`, folder by folder, but for those in its own folders called as one of
    `without`.

    Raises FormatError for a folder that cannot be read, has too many paths, or, unless `follow`, is outside.
    """
    paths, above = Counter[_Place](), Counter[_Place]()
    ahead = [(top, _place(top))]  # what is to be visited, the next one last; without a path, it was
    while ahead:
        here, place = ahead.pop()
        if not here:
            above[place] -= 1
            continue
        paths[place] += 1
        if paths[place] > MOST:
            raise _tangled(here, top)
        names, folders = _listed(here)
        wanted = [os.path.join(here, name) for name in folders if here != top or name not in without]
        above[place] += 1
        inner = [(path, at) for path in wanted if not above[at := _place(path)]]
        for path, at in inner:
            if at not in paths and os.path.islink(path):
                check_link(path, top, follow=follow)
        ahead += [("", place), *reversed(inner)]
        inside = os.path.relpath(here, top)
        yield from (name if inside == "." else f"{inside}/{name}" for name in names)


def _listed(here: str) -> tuple[list[str], list[str]]:
    """What is in a folder, (files, folders), each in order."""
    names, folders = list[str](), list[str]()
    try:
        with os.scandir(here) as found:
            for entry in found:
                (folders if _is_folder(entry) else names).append(entry.name)
    except OSError as error:
        raise unreadable(error, here) from error
    return sorted(names), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one; one that leads to itself is told of when it is read."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def _place(folder: str) -> _Place:
    """What is the same for all paths of a folder."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise unreadable(error, folder) from error
    return status.st_dev, status.st_ino


def unreadable(error: OSError, folder: str) -> FormatError:
    """The error for a folder that cannot be looked into."""
    long = error.errno == errno.ENAMETOOLONG
    tip = "its path is too long: move what holds it nearer to the root" if long else "mend its permissions"
    return FormatError(f"cannot read a folder: {error.strerror}", where=[folder], help=tip)


def _tangled(here: str, top: str) -> FormatError:
    return FormatError(
        f"links between folders give one of them more than {MOST} paths",
        where=[os.path.realpath(here), f"{top}: one of them is {os.path.relpath(here, top)}"],
        help="each path would be a copy of it: remove the links that are not needed",
    )
