"""How much of a value is made at once, so that a core finds it in its cache again: what is read, its float32 tiles and
the result, which lies where what was read did.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

USUAL = 2 << 20  # bytes of a second-level cache where the system does not tell
LEAST, MOST = 512 << 10, 4 << 20  # bytes: below, calls cost more than is won; above, caches belong to several cores
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def window_for(second: int) -> int:
    """Bytes of a window for a second-level cache of so many: half of it, since tiles take the other half."""
    return min(max(second // 2, LEAST), MOST)


@cache
def window_here() -> int:
    """The same for the cores of this machine."""
    return window_for(second_level())


def second_level() -> int:
    """Bytes of the second-level cache of a core, by the system."""
    with suppress(OSError, ValueError):
        if (size := os.sysconf("SC_LEVEL2_CACHE_SIZE")) > 0:
            return size
    with suppress(OSError, ValueError):
        return _size_of((path / "level", path / "size") for path in sorted(_CACHES.glob("index*")))
    return USUAL


def _size_of(caches: Iterable[tuple[Path, Path]]) -> int:
    """Bytes of the first cache of level 2; `size` says them as 2048K."""
    for level, size in caches:
        if level.read_text().strip() == "2":
            return int(size.read_text().strip().removesuffix("K")) << 10
    return USUAL
