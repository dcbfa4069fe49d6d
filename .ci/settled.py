"""A .tar.gz packed anew in place, so that it does not tell when and by whom: `python settled.py FILE`.

Times are SOURCE_DATE_EPOCH, owners nobody, modes 644 and 755, names in order.
"""

from __future__ import annotations

import gzip
import os
import sys
import tarfile
from pathlib import Path


def settle(path: Path, time: int) -> None:
    """Pack the file anew."""
    new = path.with_suffix(".new")
    with (
        tarfile.open(path) as old,
        new.open("wb") as raw,
        gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=time) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in sorted(old.getmembers(), key=lambda one: one.name):
            member.mtime, member.pax_headers = time, {}
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            made.addfile(member, old.extractfile(member) if member.isfile() else None)
    new.replace(path)


if __name__ == "__main__":
    settle(Path(sys.argv[1]), int(os.environ["SOURCE_DATE_EPOCH"]))
