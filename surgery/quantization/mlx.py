"""MLX: codes of 2 to 8 bits in words of 32, with a scale and a bias for each group of inputs.

    M.weight (out, in * bits / 32) U32, M.scales and M.biases (out, in / group)  ->  code * scale + bias

Codes run through the bits of a row from the lowest on, so that those of 3, 5 and 6 bits may end in the next word.
`mx.dequantize` rounds the product to the dtype of the scales before it adds the bias, and so does what is decoded to
that dtype. config.json says bits and sizes of groups for all, and others for the modules that it names; what has no
scales is not quantised. In the mode `mxfp4` scales are powers of two, and there are no biases. Source: mlx 0.32, whose
`mx.dequantize` is the judge, and mlx-lm 0.32 `utils.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lazy.coding import Coding, Packing
from ..lazy.tensor import Decoded, Shape
from .scheme import Quantised, Scheme, Source

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (16, 32, 64, 128, 256)
FLOATS = ("F16", "BF16", "F32")
SCALES, BIASES = ".scales", ".biases"


def find(source: Source) -> dict[str, Quantised]:
    """Every module with scales. Raises FormatError where config.json contradicts them, NotSupported for modes that are
    not read.
    """
    modules = [name.removesuffix(SCALES) for name in source.tensors if name.endswith(SCALES)]
    found = {f"{module}.weight": _weight(source, module, _said(source, module)) for module in modules}
    used = {part for one in found.values() for part in one.parts}
    words = [n for n, t in source.tensors.items() if t.dtype.name == "U32" and len(t.shape) > 1 and n not in used]
    if lone := [name for name in source.tensors if name.endswith(BIASES) and name not in used] + words:
        raise source.broken("codes or biases are here without the scales that they belong to", lone)
    return found


def _said(source: Source, module: str) -> Mapping[str, Any]:
    """What config.json says of a module: its own numbers, or those of all."""
    own = source.said.get(module, True)
    if own is False:
        raise source.broken("config.json says that a module is not quantised, and it has scales", [module + SCALES])
    return {**source.said, **own} if isinstance(own, Mapping) else source.said


def _weight(source: Source, module: str, said: Mapping[str, Any]) -> Quantised:
    codes, scales, biases = (f"{module}{last}" for last in (".weight", SCALES, BIASES))
    mode, bits, group = said.get("mode", "affine"), said.get("bits"), said.get("group_size")
    if bits not in BITS or group not in GROUPS or type(bits) is not int or type(group) is not int:
        raise source.broken(f"codes of {bits!r} bits in groups of {group!r} are none that MLX makes", [codes])
    if mode not in ("affine", "mxfp4"):
        raise source.unread(
            f"weights quantised by MLX in the mode `{mode}` are not read: affine and mxfp4 are", [codes]
        )
    words = source.stored(codes)
    if words.dtype.name != "U32" or len(words.shape) < 2 or words.shape[-1] * 32 % (bits * group):
        what = f"codes are {words.dtype} {list(words.shape)}, and no whole groups of {group} with {bits} bits in U32"
        raise source.broken(what, [codes])
    columns = words.shape[-1] * 32 // bits
    shape, said_of = (*words.shape[:-1], columns), f"{columns} inputs in groups of {group}"
    groups: Shape = (*words.shape[:-1], columns // group)
    if mode == "mxfp4":
        return _floats(source, module, shape, groups, said_of)
    wanted = {scales: (FLOATS, groups), biases: (FLOATS, groups)}
    source.check_shapes(codes, said_of, wanted)
    parts = (("scale", source.tensors[scales]), ("bias", source.tensors[biases]))
    dtypes = {part.dtype for _, part in parts}
    if len(dtypes) > 1:
        raise source.broken("scales and biases of a weight have two dtypes", [scales, biases])
    coding = Coding("integer", Packing(bits, 32), (1, group), signed=True, stepped=True)
    decoded = Decoded(dtypes.pop(), shape, coding, words, parts, codes)
    return Quantised(f"MLX, {bits} bits, groups of {group}", decoded, (codes, scales, biases))


def _floats(source: Source, module: str, shape: Shape, groups: Shape, said: str) -> Quantised:
    """A weight of floats of 4 bits, whose scales are powers of two."""
    codes, scales = f"{module}.weight", f"{module}{SCALES}"
    source.check_shapes(codes, said, {scales: (("U8",), groups)})
    if shape[-1] // groups[-1] != 32 or source.tensors[codes].shape[-1] * 8 != shape[-1]:
        raise source.broken("mxfp4 has 4 bits, and groups of 32", [codes])
    coding = Coding("e2m1", Packing(4, 32), (1, 32), "exponent")
    parts = (("scale", source.tensors[scales]),)
    return Quantised(
        "MLX, mxfp4", Decoded(source.dtype, shape, coding, source.tensors[codes], parts, codes), (codes, scales)
    )


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """What has no scales is not quantised: nothing more is to be said."""
    return {key: value for key, value in said.items() if key not in modules}


def header(said: Mapping[str, str]) -> Mapping[str, str]:
    """Of weights that any loader takes."""
    return {**said, "format": "pt"} if said.get("format") == "mlx" else said


SCHEME = Scheme("mlx", find, skip, header=header)
