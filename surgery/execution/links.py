"""Hard links from a stage to inputs: a name is made, never a byte written, so that the input stays what it is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from ..errors import listed
from ..lazy.tensor import File
from .writing_inside import Inside

# Where a file cannot get a second name: on another file system, or one without links, or another user's file, or one
# too many.
NO_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class Links:
    """What was linked into a stage, and what could not be."""

    def __init__(self, stage: Inside, linked: Callable[[str, int], None]) -> None:
        self.stage, self.linked = stage, linked
        self.nbytes, self.refused = 0, list[str]()

    def link(self, file: File, name: str) -> bool:
        """Whether `name` is a link to the input now, durable."""
        if file.remote:
            return False
        try:
            self.stage.link(os.path.realpath(file.path), name)
        except OSError as error:
            if error.errno not in NO_LINK:
                raise
            self.refused.append(f"{name}: {error.strerror}")
            return False
        self.nbytes += file.size
        self.linked(name, file.size)
        return True

    def notes(self) -> list[str]:
        """What the report says of it."""
        said = (
            [f"hard-linked to the inputs: {self.nbytes} bytes; whoever writes to one of them writes to both"]
            if self.nbytes
            else []
        )
        return said + (
            [f"copied, since they could not be linked: {', '.join(listed(self.refused))}"] if self.refused else []
        )
