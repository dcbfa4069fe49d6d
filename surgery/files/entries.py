"""All that lies in a folder, at any depth, links not followed: however deep it is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Each file, folder and link below `folder`; what is in a folder that cannot be read is passed over."""
    ahead = [folder]
    while ahead:
        found = list[os.DirEntry[str]]()
        with suppress(OSError), os.scandir(ahead.pop()) as listing:
            found += listing
        yield from found
        ahead += [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
