"""Whether two stored tensors are the same, byte by byte, read some at a time."""

from __future__ import annotations

import os

from ..lazy.tensor import Stored, Tensor
from .opening import regular

_CHUNK = 1 << 20


def same_bytes(one: Tensor, other: Tensor) -> bool:
    """Whether both hold the same bytes under one dtype and shape, each in one piece of its file."""
    if not (isinstance(one, Stored) and isinstance(other, Stored)):
        return False
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open(one.file.path, "rb", opener=regular) as left, open(other.file.path, "rb", opener=regular) as right:
        for at in range(0, one.nbytes, _CHUNK):
            size = min(_CHUNK, one.nbytes - at)
            if os.pread(left.fileno(), size, one.offset + at) != os.pread(right.fileno(), size, other.offset + at):
                return False
    return True
