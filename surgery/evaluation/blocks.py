"""Numbers out of the blocks of GGUF: of each layout what the reference decoder makes of a block, bit for bit.

A block holds codes of `block[1]` neighbours in a row, and the scales of them. All is computed in float32, in the order
of gguf 0.19 `quants.py`, which is the judge. Bytes of blocks are [blocks, bytes]; numbers are [blocks, elements].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..lazy.tables import E2M1_CODES
from ..lazy.tensor import Decoded
from .arithmetic import torch_dtype
from .scales import broken

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

BAND = 1 << 18  # elements that are decoded at once


def fill_blocks(decoded: Decoded, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of a tensor of blocks."""
    import torch

    result = torch.frombuffer(out, dtype=torch_dtype(decoded.dtype))
    wide = decoded.coding.block[1]
    step = BAND // wide
    for first in range(start // wide, -(-stop // wide), step):
        last = min(first + step, -(-stop // wide))
        values = _values(decoded, first, last, work).view(-1)
        low, high = max(start, first * wide), min(stop, last * wide)
        result[low - start : high - start].copy_(values[low - first * wide : high - first * wide])


def _values(decoded: Decoded, first: int, last: int, work: Workspace) -> torch.Tensor:
    """The numbers of blocks [first, last). Raises FormatError for a scale that is no number."""
    import torch

    size = decoded.codes.size * decoded.coding.block[1] // decoded.size
    raw = work.buffer(f"blocks {work.depth}", (last - first) * size)
    work.fill_under(decoded.codes, first * size, last * size, raw)
    try:
        return LAYOUTS[decoded.coding.layout](torch.frombuffer(raw, dtype=torch.uint8).view(-1, size))
    except ValueError as error:
        raise broken(decoded, error) from error


def _half(raw: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of each block, as a column. Raises ValueError where one is no number."""
    import torch

    found = raw[:, at : at + 2].contiguous().view(torch.float16).to(torch.float32)
    if not bool(torch.isfinite(found).all()):
        raise ValueError("a scale is NaN or infinite")
    return found


def _fields(raw: torch.Tensor, bits: int, run: int) -> torch.Tensor:
    """The codes of `bits` bits in bytes: in each run of so many, first the lowest of all, then those above."""
    import torch

    shifts = torch.arange(0, 8, bits, dtype=torch.uint8)[:, None]
    split = raw.reshape(len(raw), -1, 1, run) >> shifts
    return split.bitwise_and_((1 << bits) - 1).view(len(raw), -1)


def _high_bits(raw: torch.Tensor) -> torch.Tensor:
    """The bits of bytes one after another, each as a fifth bit of a code."""
    import torch

    bits = (raw[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.view(len(raw), -1) << 4


def _float(codes: torch.Tensor, offset: int = 0) -> torch.Tensor:
    import torch

    values = codes.to(torch.float32)
    return values.sub_(offset) if offset else values


def _grouped(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Values times the scale of their group, of which each block has as many as there are columns of scales."""
    return values.view(*scales.shape, -1).mul_(scales[..., None])


def q4_0(raw: torch.Tensor) -> torch.Tensor:
    return _float(_fields(raw[:, 2:], 4, 16), 8).mul_(_half(raw, 0))


def q4_1(raw: torch.Tensor) -> torch.Tensor:
    return _float(_fields(raw[:, 4:], 4, 16)).mul_(_half(raw, 0)).add_(_half(raw, 2))


def q5_0(raw: torch.Tensor) -> torch.Tensor:
    return _float(_fields(raw[:, 6:], 4, 16) | _high_bits(raw[:, 2:6]), 16).mul_(_half(raw, 0))


def q5_1(raw: torch.Tensor) -> torch.Tensor:
    return _float(_fields(raw[:, 8:], 4, 16) | _high_bits(raw[:, 4:8])).mul_(_half(raw, 0)).add_(_half(raw, 2))


def q8_0(raw: torch.Tensor) -> torch.Tensor:
    import torch

    return _float(raw[:, 2:].view(torch.int8)).mul_(_half(raw, 0))


def q2_k(raw: torch.Tensor) -> torch.Tensor:
    scales = raw[:, :16]
    least = _half(raw, 82) * _float(scales >> 4)
    values = _grouped(_float(_fields(raw[:, 16:80], 2, 32)), _half(raw, 80) * _float(scales & 15))
    return values.sub_(least[..., None])


def q3_k(raw: torch.Tensor) -> torch.Tensor:
    low, high = _fields(raw[:, 96:104], 4, 8), _fields(raw[:, 104:108], 2, 4)
    scales = _half(raw, 108) * _float(low | high << 4, 32)
    absent = _fields(raw[:, :32], 1, 32) ^ 1  # where the bit is not set, 4 is subtracted
    codes = _float(_fields(raw[:, 32:96], 2, 32)).sub_(_float(absent << 2))
    return _grouped(codes, scales)


def _scales_and_least(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight scales of a block of Q4_K or Q5_K, and what is subtracted from each group."""
    import torch

    first, second, third = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = torch.cat([first & 63, third & 15 | first >> 2 & 48], 1)
    least = torch.cat([second & 63, third >> 4 | second >> 2 & 48], 1)
    return _half(raw, 0) * _float(scales), _half(raw, 2) * _float(least)


def q4_k(raw: torch.Tensor) -> torch.Tensor:
    scales, least = _scales_and_least(raw)
    return _grouped(_float(_fields(raw[:, 16:], 4, 32)), scales).sub_(least[..., None])


def q5_k(raw: torch.Tensor) -> torch.Tensor:
    scales, least = _scales_and_least(raw)
    codes = _fields(raw[:, 48:], 4, 32) | _fields(raw[:, 16:48], 1, 32) << 4
    return _grouped(_float(codes), scales).sub_(least[..., None])


def q6_k(raw: torch.Tensor) -> torch.Tensor:
    import torch

    codes = _fields(raw[:, :128], 4, 64) | _fields(raw[:, 128:192], 2, 32) << 4
    scales = _half(raw, 208) * _float(raw[:, 192:208].view(torch.int8))
    return _grouped(_float(codes, 32), scales)


def mxfp4(raw: torch.Tensor) -> torch.Tensor:
    import torch

    exponents = raw[:, :1].to(torch.int32)
    if bool((exponents == 255).any()):
        raise ValueError("a scale byte is 255, which means no number")
    scales = torch.where(exponents == 0, 1 << 22, exponents << 23).view(torch.float32)
    codes = _fields(raw[:, 1:], 4, 16)
    return torch.tensor(E2M1_CODES).add_(0)[codes.to(torch.int32)].mul_(scales)  # one zero, without a sign


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Q4_0": q4_0,
    "Q4_1": q4_1,
    "Q5_0": q5_0,
    "Q5_1": q5_1,
    "Q8_0": q8_0,
    "Q2_K": q2_k,
    "Q3_K": q3_k,
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
    "MXFP4": mxfp4,
}
