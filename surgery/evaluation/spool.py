"""Tensors that a surgery had to compute before anything can be planned: kept in a file, and not in memory, until the
process ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import NoSpace
from ..lazy.dtypes import F32
from ..lazy.tensor import File, Stored

if TYPE_CHECKING:
    import torch

_folders: list[tempfile.TemporaryDirectory[str]] = []  # one for the process, removed when it ends


def spooled(values: Iterable[tuple[str, torch.Tensor]]) -> dict[str, Stored]:
    """The float32 values as tensors in a file, by key: each is written when it comes."""
    path = os.path.join(_folder(), str(len(os.listdir(_folder()))))
    digest, found, at = hashlib.sha256(), dict[str, tuple[int, tuple[int, ...]]](), 0
    try:
        with open(path, "xb") as stream:
            for key, value in values:
                data = value.contiguous().numpy().tobytes()
                digest.update(data)
                stream.write(data)
                found[key] = (at, tuple(value.shape))
                at += len(data)
    except OSError as error:
        raise NoSpace(
            f"what was computed cannot be kept: {error.strerror}", where=[path], help="set TMPDIR to a place with room"
        ) from error
    status = os.stat(path)
    file = File(path, status.st_size, status.st_mtime_ns, digest.hexdigest())
    return {key: Stored(F32, shape, file, offset) for key, (offset, shape) in found.items()}


def is_spooled(file: File) -> bool:
    """Whether the file is one of this process, told by what it holds and not by where that lies."""
    return any(os.path.dirname(file.path) == folder.name for folder in _folders)


def without_places(text: str) -> str:
    """A text about tensors without where files of this process lie, and when they were written."""
    for folder in _folders:
        text = re.sub(rf"path='{re.escape(folder.name)}/\d+', size=(\d+), mtime_ns=\d+", r"size=\1", text)
    return text


def _folder() -> str:
    if not _folders:
        _folders.append(tempfile.TemporaryDirectory(prefix="surgery-", ignore_cleanup_errors=True))
    return _folders[0].name
