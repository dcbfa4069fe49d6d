"""Every file in a folder of this disk, as a copy that follows links has them: what a link to a folder leads to lies at
the link's path as well.

A link to a folder above is passed over, since what is there is carried from there. Folders that link to each other
have as many paths as there are orders to visit them in: beyond `MOST` for one folder the links are refused, so that a
walk is bounded, and leaves nothing out in silence.
"""

from __future__ import annotations

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
    above: dict[str, frozenset[_Place]] = {}
    paths = Counter[_Place]()
    for here, folders, names in os.walk(top, followlinks=True, onerror=_unreadable):
        place = _place(here)
        if place not in paths:
            check_link(here, top, follow=follow)
        paths[place] += 1
        if paths[place] > MOST:
            raise _tangled(here, top)
        above[here] = above.get(os.path.dirname(here), frozenset()) | {place}
        wanted = (name for name in folders if here != top or name not in without)
        folders[:] = sorted(name for name in wanted if _place(os.path.join(here, name)) not in above[here])
        inside = os.path.relpath(here, top)
        yield from (name if inside == "." else f"{inside}/{name}" for name in sorted(names))


def _place(folder: str) -> _Place:
    """What is the same for all paths of a folder."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _tangled(here: str, top: str) -> FormatError:
    return FormatError(
        f"links between folders give one of them more than {MOST} paths",
        where=[os.path.realpath(here), f"{top}: one of them is {os.path.relpath(here, top)}"],
        help="each path would be a copy of it: remove the links that are not needed",
    )


def _unreadable(error: OSError) -> None:
    raise FormatError(
        f"cannot read a folder: {error.strerror}", where=[str(error.filename)], help="mend its permissions"
    ) from error
