"""The experts of gpt-oss, MXFP4: two floats of 4 bits to a byte, the first in the low half, and a scale for 32.

    X_blocks (experts, out, in / 32, 16), X_scales (experts, out, in / 32)  ->  X (experts, in, out)

The weight in 16 bits is transposed. Source: transformers 5.23 `integrations/mxfp4.py: convert_moe_packed_tensors`.
"""

from __future__ import annotations

from ..lazy.coding import Coding, Packing
from ..lazy.tensor import Decoded, permute, reshape
from .scheme import Quantised, Scheme, Source

BLOCKS, SCALES = "_blocks", "_scales"
CODING = Coding("e2m1", Packing(4, 8), (1, 32), "exponent")


def find(source: Source) -> dict[str, Quantised]:
    """Every parameter with blocks and scales. Raises FormatError where these contradict each other."""
    found = {n.removesuffix(BLOCKS): _weight(source, n) for n in source.tensors if n.endswith(BLOCKS)}
    used = {part for one in found.values() for part in one.parts}
    scales = [n for n, t in source.tensors.items() if n.endswith(SCALES) and t.dtype.name in ("U8", "F8_E8M0")]
    if stray := [n for n in scales if n not in used]:
        raise source.broken("scales lie here, and no blocks of codes that they belong to", stray)
    if both := [n for n in found if n in source.tensors]:
        raise source.broken("weights are here in 16 bits, and as blocks of codes too", both)
    return found


def _weight(source: Source, blocks: str) -> Quantised:
    name = blocks.removesuffix(BLOCKS)
    codes, scales = source.tensors[blocks], name + SCALES
    source.check_there(blocks, [scales])
    scale = source.tensors[scales]
    if codes.dtype.name != "U8" or len(codes.shape) != 4 or codes.shape[-1] != 16:
        raise source.broken(
            f"blocks of codes are {codes.dtype} {list(codes.shape)}, and not U8 [.., .., .., 16]", [blocks]
        )
    if scale.dtype.name not in ("U8", "F8_E8M0") or scale.shape != codes.shape[:-1]:
        what = f"the blocks are {list(codes.shape)}, and their scales {scale.dtype} {list(scale.shape)}"
        raise source.broken(what, [blocks, scales])
    experts, rows, groups, _ = codes.shape
    flat = reshape(codes, (experts, rows, groups * 16))
    decoded = Decoded(source.dtype, (experts, rows, groups * 32), CODING, flat, (("scale", scale),), blocks)
    return Quantised("MXFP4 of gpt-oss, groups of 32", permute(decoded, (0, 2, 1)), (blocks, scales))


WHY = "its experts are quantised in all layers, or in none"
SCHEME = Scheme("mxfp4", find, why=WHY)
