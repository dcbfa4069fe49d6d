"""Small disks, to be filled."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted(place: Path, size: str) -> Iterator[bool]:
    """A disk in memory of that size, such as "2m", at a folder that is made for it; False where none can be there."""
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", place]
    try:
        there = not subprocess.run(words, capture_output=True).returncode
    except FileNotFoundError:
        there = False
    try:
        yield there
    finally:
        if there:
            subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def nearly_full(place: Path, left: int) -> Iterator[None]:
    """Of the disk on which a folder lies, so many bytes are left."""
    there = os.statvfs(place)
    ballast = place / "ballast"
    with ballast.open("wb") as stream:
        if (size := there.f_bavail * there.f_frsize - left) > 0:
            os.posix_fallocate(stream.fileno(), 0, size)
    try:
        yield
    finally:
        ballast.unlink()
