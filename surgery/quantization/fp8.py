"""FP8 as DeepSeek, Qwen and transformers' `fp8` have it: float8 weights with a scale for each block, or for all.

The name `weight_scale_inv` misleads: weights are multiplied by it. Blocks are laid from the top left, and the last of
a row or column is cut. Sources: DeepSeek-V3 `inference/fp8_cast_bf16.py`, transformers 5.23 `finegrained_fp8.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..lazy.coding import Coding, Packing, Scale
from ..lazy.tensor import Decoded, Shape, Tensor, reshape
from .scheme import Quantised, Scheme, Source, same_but_ones
from .skip_lists import check_listed, extended

FLOATS = ("F8_E4M3", "F8_E5M2")
SCALES = ("{0}_scale_inv", "{0}_scale", "{1}.scale", "{1}.qscale_weight")  # of a weight, of its module
LEFT = ("activation_scale", "input_scale", "qscale_act")
LISTS = ("modules_to_not_convert", "ignored_layers")
NIBBLES = Packing(4, 8)


def find(source: Source) -> dict[str, Quantised]:
    """Every float8 tensor that has a scale, and DeepSeek-V4's experts of 4 bits. Raises FormatError for one without."""
    block = _block(source)
    found: dict[str, Quantised] = {}
    lone = list[str]()
    for name, tensor in source.tensors.items():
        if (scale := scale_of(source, name)) and tensor.dtype.name in FLOATS:
            found[name] = _eight_bits(source, name, scale, block)
        elif scale and tensor.dtype.name == "I8":
            found[name] = _four_bits(source, name, scale)
        elif tensor.dtype.name in FLOATS:
            lone.append(name)
    if lone:
        raise source.broken("float8 weights have no scale, and mean nothing without it", lone)
    used = {part for one in found.values() for part in one.parts}
    if stray := [n for n in source.tensors if n.endswith("_scale_inv") and n not in used]:
        raise source.broken("scales are here, and no float8 weights that they belong to", stray)
    for key in LISTS:
        check_listed(source, key, found)
    return found


def scale_of(source: Source, name: str) -> str:
    """The name of the tensor that holds the scales of a weight; "" where there is none."""
    module = name.rpartition(".")[0]
    return next((n for form in SCALES if (n := form.format(name, module)) in source.tensors and n != name), "")


def _block(source: Source) -> tuple[int, int] | None:
    """The rows and columns of a block, as config.json says; None: one scale for the whole weight, or for each row."""
    said = source.said.get("weight_block_size")
    if said is None:
        return None
    if not (isinstance(said, list) and len(said) == 2 and all(type(n) is int and n > 0 for n in said)):
        raise source.broken(f"the blocks of the weights are {said!r}, and not two numbers", ["weight_block_size"])
    return said[0], said[1]


def _eight_bits(source: Source, name: str, scale_name: str, block: tuple[int, int] | None) -> Quantised:
    codes, scale = source.tensors[name], source.tensors[scale_name]
    found, scale = groups(source, name, scale_name, codes.shape, scale, block)
    how: Scale = "exponent" if scale.dtype.name in ("U8", "F8_E8M0") else "plain"
    decoded = Decoded(source.dtype, codes.shape, Coding("float", None, found, how), codes, (("scale", scale),), name)
    rows, columns = found
    title = "FP8, " + (f"blocks of {rows} x {columns}" if block else "a scale for each weight matrix or row")
    return Quantised(title, decoded, (name, scale_name), left_of(source, name))


def groups(
    source: Source, name: str, scale_name: str, shape: Shape, scale: Tensor, block: tuple[int, int] | None
) -> tuple[tuple[int, int], Tensor]:
    """How many rows and columns share a scale, and the scales as a matrix for each matrix of the weight. Raises
    FormatError where they do not fit.
    """
    if len(shape) < 2:
        raise source.broken(f"{name} is quantised, and no matrix: {list(shape)}", [scale_name])
    *lead, rows, columns = shape
    told = [block] if block and (scale.size > 1 or len(scale.shape) > 1) else []
    for tall, wide in told or [(rows, columns), (1, columns), (rows, 1)]:
        wanted = (*lead, -(-rows // tall), -(-columns // wide))
        if same_but_ones(scale.shape, wanted):
            return (tall, wide), reshape(scale, wanted)
    if scale.size == 1:
        return (rows, columns), reshape(scale, (1, 1)) if not lead else scale
    said = f"blocks of {block[0]} x {block[1]}" if block else "one for each matrix, row or column"
    what = f"{name} is {list(shape)} and its scales are {list(scale.shape)}, which are not {said}"
    raise source.broken(what, [name, scale_name])


def _four_bits(source: Source, name: str, scale_name: str) -> Quantised:
    """Experts of DeepSeek-V4: two numbers of 4 bits in a byte, the first in the low half, a scale for 32 of them."""
    if source.checkpoint.config.get("expert_dtype") != "fp4":
        raise source.broken(f"{name} is I8, and config.json says nothing of experts in fp4", [scale_name])
    codes, scale = source.tensors[name], source.tensors[scale_name]
    shape = (*codes.shape[:-1], 2 * codes.shape[-1])
    if scale.shape != (*shape[:-1], -(-shape[-1] // 32)):
        raise source.broken(f"{name} of {list(shape)} needs a scale for 32 columns", [scale_name])
    how: Scale = "exponent" if scale.dtype.name in ("U8", "F8_E8M0") else "plain"
    decoded = Decoded(source.dtype, shape, Coding("e2m1", NIBBLES, (1, 32), how), codes, (("scale", scale),), name)
    return Quantised("FP4 experts, groups of 32", decoded, (name, scale_name), left_of(source, name))


def left_of(source: Source, name: str) -> tuple[str, ...]:
    """Scales of activations beside a weight."""
    module = name.rpartition(".")[0]
    return tuple(n for last in LEFT if (n := f"{module}.{last}") in source.tensors)


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """The list goes by two names."""
    key = (
        "ignored_layers"
        if "ignored_layers" in said and "modules_to_not_convert" not in said
        else "modules_to_not_convert"
    )
    return extended(said, key, modules, quantised)


SCHEME = Scheme("fp8", find, skip)
