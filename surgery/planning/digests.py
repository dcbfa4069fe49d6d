"""What the carried files of an output hold, by digest: so that an edit is noticed that leaves the size as it was."""

from __future__ import annotations

from collections.abc import Mapping

from ..evaluation.read import sha256
from ..lazy.tensor import File

# bytes: larger files are told by size; on the way to the Hub such a one may have left the disk before it is verified
LIMIT = 10_000_000


def digests_of(files: Mapping[str, File | bytes]) -> dict[str, str]:
    """SHA-256 of each file that is not large, by path; of one on the Hub the hash that the Hub has of it, which may
    be git's.
    """
    return {path: _digest(file) for path, file in sorted(files.items()) if isinstance(file, bytes) or file.size < LIMIT}


def _digest(file: File | bytes) -> str:
    return file.digest if isinstance(file, File) and file.remote and file.digest else sha256(file)
