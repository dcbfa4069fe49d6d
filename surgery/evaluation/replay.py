"""Is what a record promises true? Blocks of a `Restored` are restored from what lies on the disk, and held against
their digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from zlib import crc32

from ..lazy.tensor import Restored
from .corrections import block_of, blocks_of
from .evaluate import into

if TYPE_CHECKING:
    from .workspace import Workspace


def replay(restored: Restored, work: Workspace, *, every: bool) -> None:
    """Raise VerificationFailed unless its blocks come back: every one, or one, which depends on the tensor's name
    alone.

    A block is a million elements, about: as much is read, predicted and hashed for each.
    """
    whole, bits = block_of(restored.shape), restored.dtype.bits
    for block in _chosen(restored, every=every):
        low, high = block * whole, min((block + 1) * whole, restored.size)
        into(restored, low, high, work.buffer("original", (high - low) * bits // 8), work)


def _chosen(restored: Restored, *, every: bool) -> Iterable[int]:
    count = blocks_of(restored.shape)
    return range(count) if every or not count else [crc32(restored.name.encode()) % count]
