"""Corrections: what turns a block of predicted values into the block that it was.

A frame is one byte of mode, then zstandard streams, each after its length (4 bytes, little-endian):

    SPARSE   gaps between the elements that differ, corrections to them, corrections too large for a byte
    DENSE    corrections to all elements, byte plane by byte plane
    PLANES   the original's own byte planes
    RAW      the original's bytes, as they are: a frame is never longer than the block and its mode
    no byte at all: the prediction is right

A correction is the number of representable values between the predicted and the original one: bits are mapped to
integers in the order of the floats that they stand for. It is exact for any bits, NaN and -0.0 too.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Any

from ..errors import FormatError
from ..lazy.tensor import Shape

if TYPE_CHECKING:
    import numpy as np

    Words = np.ndarray[Any, np.dtype[Any]]

BLOCK = 1 << 20  # elements, about: a frame and a digest are made for each block
DIGEST = 8  # bytes of SHA-256 that are kept of each block
SPARSE, DENSE, PLANES, RAW = range(1, 5)
_ROWS = 64  # blocks hold whole tiles of a sum
_LEVEL = 3  # of zstandard


def block_of(shape: Shape) -> int:
    """Elements of a block of a tensor of `shape`: whole tiles of rows where they fit. Depends on nothing else."""
    tile = _ROWS * shape[-1] if shape else 0
    return BLOCK // tile * tile if 0 < tile <= BLOCK else BLOCK


def blocks_of(shape: Shape) -> int:
    """How many blocks a tensor of `shape` has."""
    return -(-math.prod(shape) // block_of(shape))


def digest(data: memoryview) -> bytes:
    """What is kept to recognise a block by."""
    return hashlib.sha256(data).digest()[:DIGEST]


def difference(original: memoryview, predicted: memoryview, bits: int) -> bytes:
    """The frame that turns `predicted` into `original`, blocks of elements of `bits` bits."""
    import numpy as np

    want, guess = _words(original, bits), _words(predicted, bits)
    wrong = np.flatnonzero(want != guess)
    if not len(wrong):
        return b""
    steps = _steps(want[wrong], guess[wrong])
    small = np.minimum(steps, 255).astype(np.uint8)
    frame = _frame(SPARSE, _gaps(np.diff(wrong, prepend=-1) - 1), small, steps[small == 255])
    if len(frame) <= len(original) // 3:
        return frame
    dense = _frame(DENSE, *_planes(_steps(want, guess).astype(want.dtype)))
    best = min(frame, dense, _frame(PLANES, *_planes(want)), key=len)
    return best if len(best) <= len(original) else bytes((RAW,)) + bytes(original)


def correct(frame: bytes, data: memoryview, bits: int, where: str) -> None:
    """Turn the predicted block `data` into the original, in place. Raises FormatError, naming `where`, for a broken
    frame.
    """
    import numpy as np
    import zstandard

    try:
        if len(frame) > len(data) + 1:
            raise ValueError("a frame is longer than its block")
        if frame[0] == RAW:
            data[:] = memoryview(frame)[1:]
            return
        values, streams = _words(data, bits), _streams(frame, 12 * len(data) + 16)
        if frame[0] == SPARSE:
            gaps, small, large = (
                np.frombuffer(s, dtype) for s, dtype in zip(streams, (np.uint8, np.uint8, np.uint64), strict=True)
            )
            steps = small.astype(np.uint64)
            steps[small == 255] = large
            wrong = _places(gaps)
            values[wrong] = _stepped(values[wrong], steps)
        elif frame[0] in (DENSE, PLANES):
            words = (
                np.stack([np.frombuffer(plane, np.uint8) for plane in streams], 1)
                .view(values.dtype)
                .reshape(values.shape)
            )
            values[:] = words if frame[0] == PLANES else _stepped(values, words.astype(np.uint64))
        else:
            raise ValueError(f"a frame of mode {frame[0]}")
    except (ValueError, IndexError, TypeError, zstandard.ZstdError) as error:
        raise FormatError("the undo record is damaged", where=[where], help="restore the record from a copy") from error


def _words(data: memoryview, bits: int) -> Words:
    """The bits of the elements, as unsigned integers; of packed dtypes, their bytes."""
    import numpy as np

    return np.frombuffer(data, {16: "<u2", 32: "<u4", 64: "<u8"}.get(bits, "u1"))


def _ordered(words: Words) -> Words:
    """Floats' bits as integers in the order of the floats: negative ones count downwards, -0.0 just below 0.0."""
    import numpy as np

    top = words.dtype.type(1 << (8 * words.itemsize - 1))
    return np.where(words & top, ~words, words | top)


def _floats(ordered: Words) -> Words:
    """The inverse of `_ordered`."""
    import numpy as np

    top = ordered.dtype.type(1 << (8 * ordered.itemsize - 1))
    return np.where(ordered & top, ordered ^ top, ~ordered)


def _steps(want: Words, guess: Words) -> Words:
    """How many floats lie between, as zigzag numbers: 0, -1, 1, -2, … as 0, 1, 2, 3, …; 64 bits each."""
    import numpy as np

    steps = (_ordered(want) - _ordered(guess)).view(f"<i{want.itemsize}").astype(np.int64)
    return ((steps << 1) ^ (steps >> 63)).view(np.uint64)


def _stepped(guess: Words, steps: Words) -> Words:
    """The floats that are so many steps from the guessed ones."""
    import numpy as np

    back = (steps >> np.uint64(1)) ^ -(steps & np.uint64(1))
    return _floats(_ordered(guess) + back.astype(guess.dtype))


def _gaps(gaps: Words) -> Words:
    """Each gap as a byte; one of 255 or more as so many bytes 255, and the rest."""
    import numpy as np

    ends = np.cumsum(gaps // 255 + 1) - 1
    coded = np.full(int(ends[-1]) + 1, 255, np.uint8)
    coded[ends] = gaps % 255
    return coded


def _places(coded: Words) -> Words:
    """The element numbers that `_gaps` coded."""
    import numpy as np

    at = np.cumsum(coded, dtype=np.int64)[coded != 255]
    return at + np.arange(len(at))


def _planes(words: Words) -> list[Words]:
    """The lowest bytes of all words, then the next, …: alike bytes stand together."""
    import numpy as np

    table = words.view(np.uint8).reshape(len(words), -1)
    return [np.ascontiguousarray(table[:, i]) for i in range(table.shape[1])]


def _frame(mode: int, *streams: Words) -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(level=_LEVEL)
    packed = [packer.compress(stream.tobytes()) for stream in streams]
    return bytes((mode,)) + b"".join(len(p).to_bytes(4, "little") + p for p in packed)


def _streams(frame: bytes, most: int) -> list[bytes]:
    """The streams of a frame, of `most` bytes together at most."""
    import zstandard

    found, at, reader = [], 1, zstandard.ZstdDecompressor()
    while at < len(frame):
        size = int.from_bytes(frame[at : at + 4], "little")
        packed = frame[at + 4 : at + 4 + size]
        if not 0 <= zstandard.frame_content_size(packed) <= most:
            raise ValueError("a stream is longer than its block allows")
        found.append(reader.decompress(packed))
        most -= len(found[-1])
        at += 4 + size
    return found
