"""Bugs put in on purpose, which a soak must find. `python -m soaking.sabotage ROOT` is `soaking.lasting` that leaves a
descriptor, a thread and memory behind in each round.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from . import lasting

KEPT: list[bytes] = []


def flip() -> None:
    """From now on, the last byte of what is copied is another one."""
    from surgery.execution import crew

    whole = crew.copy_range

    def wrong(reader: object, file: object, at: int, fd: int, to: int, nbytes: int, *more: object) -> None:
        whole(reader, file, at, fd, to, nbytes, *more)  # type: ignore[arg-type]
        with open(f"/proc/self/fd/{fd}", "r+b") as stream:
            stream.seek(to + nbytes - 1)
            last = stream.read(1)
            stream.seek(to + nbytes - 1)
            stream.write(bytes([last[0] ^ 1]))

    mock.patch.object(crew, "copy_range", wrong).start()


def main() -> None:
    """Leave something behind in each round."""
    whole = lasting.answered

    def leaking(root: Path, said: Mapping[str, Any]) -> dict[str, Any]:
        os.open(os.devnull, os.O_RDONLY)
        threading.Thread(target=threading.Event().wait, daemon=True).start()
        KEPT.append(os.urandom(100_000))
        return whole(root, said)

    lasting.answered = leaking
    lasting.main()


if __name__ == "__main__":
    main()
