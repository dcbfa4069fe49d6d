"""Writing a picture: one file, whole or not there, never over an input, nor over anything unless that is meant."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ..errors import DestinationError
from ..execution.stage import as_ours, beside, sync
from ..files.refs import has_scheme


def check_picture(path: str | os.PathLike[str], inputs: Iterable[str], *, overwrite: bool = False) -> str:
    """The real place of a picture at `path`. Raises DestinationError where it may not be written."""
    shown = os.fspath(path)
    if has_scheme(shown):
        raise DestinationError("a picture is written to this machine alone", where=[shown], help="give a file here")
    place = os.path.join(os.path.realpath(os.path.dirname(shown) or "."), os.path.basename(shown))
    if not os.path.basename(shown) or os.path.isdir(place):
        raise DestinationError("this is a folder, and a picture is a file", where=[shown], help="name a file in it")
    if not os.path.isdir(os.path.dirname(place)):
        raise DestinationError("there is no such folder", where=[os.path.dirname(place)], help="make it first")
    for one in inputs:
        real = os.path.realpath(one)
        if os.path.realpath(place) == real or place == real or place.startswith(f"{real.rstrip('/')}/"):
            raise DestinationError(
                "the picture would lie in what it is of, which is only read",
                where=[shown, f"in {one}"],
                help="write it beside that, such as -o ../report.html",
            )
    if os.path.lexists(place) and not overwrite:
        tip = "give another name; or, to replace it: --overwrite, in Python overwrite=True"
        raise DestinationError("there is a file already", where=[shown], help=tip)
    return place


def write_picture(
    path: str | os.PathLike[str], content: bytes, inputs: Iterable[str] = (), *, overwrite: bool = False
) -> None:
    """The file at `path` has this content, by one rename; what a link there led to stays as it is."""
    place = check_picture(path, inputs, overwrite=overwrite)
    mask = os.umask(0)
    os.umask(mask)
    try:
        with beside(place, content, ".surgery-picture-", 0o666 & ~mask) as new:
            if overwrite:
                os.rename(new, place)
            else:
                os.link(new, place)  # which refuses where something came there meanwhile
                os.unlink(new)
        sync(os.path.dirname(place))
    except OSError as error:
        raise as_ours(error, place) from error
