"""Weights as the codes of a scheme that needs no calibration, under the names and with the config that the program has
whose scheme it is: bitsandbytes' NF4, transformers' FP8 in blocks.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SurgeryError
from ..evaluation.arithmetic import exact
from ..evaluation.evaluate import load
from ..evaluation.fresh import dynamic_map
from ..lazy.dtypes import BF16, DTYPES, F16, F32, Dtype
from ..lazy.fresh import Rule
from ..lazy.tables import NF4
from ..lazy.tensor import Constant, Fresh, Tensor
from . import bitsandbytes, fp8
from .scheme import DTYPES as SAID

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes takes
INNER = 256  # scales that share one, where they are quantised themselves
TILE = (128, 128)
NAMES = {dtype: name for name, dtype in SAID.items()}
U8, F8 = DTYPES["U8"], DTYPES["F8_E4M3"]

Parts = dict[str, Tensor]
Skip = Callable[[Mapping[str, Any], Sequence[str], Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """How weights are quantised: `parts(name, weight)` are the tensors that are stored of one, the codes first, and
    `said(dtype)` is what config.json says of all of them; `skip` is the scheme's own, which adds modules that are left
    out. What does not `fit` is left as it is. `experts` says whether each one of a stack is quantised, `conv1d` whether
    a Conv1D is, transposed.
    """

    title: str
    parts: Callable[[str, Tensor], Parts]
    said: Callable[[Dtype], Mapping[str, Any]]
    skip: Skip
    fits: Callable[[Tensor], bool]
    experts: bool = False
    conv1d: bool = False


def recipe_of(scheme: str) -> Recipe:
    """What `nf4`, `nf4-double`, or `fp8` means; NF4 may be in blocks of another size: `nf4:128`, `nf4:64:double`.
    Raises SurgeryError for another text.
    """
    found = re.fullmatch(r"nf4(?::(?P<block>\d+))?(?P<double>[:-]double)?", scheme)
    if scheme == "fp8":
        title = f"FP8, blocks of {TILE[0]} x {TILE[1]}"
        return Recipe(title, _fp8, lambda dtype: FP8, fp8.skip, _divides, experts=True)
    block = int(found["block"] or 64) if found else 0
    if not found or block not in BLOCKS:
        tip = f"nf4, nf4-double or fp8; nf4:BLOCK with one of {', '.join(map(str, BLOCKS))}, nf4:BLOCK:double"
        raise SurgeryError(f"`{scheme}` is no scheme to quantise by", help=tip)
    double = bool(found["double"])

    def parts(name: str, weight: Tensor) -> Parts:
        return _nf4(name, weight, block, double=double)

    title = f"bitsandbytes NF4, blocks of {block}{', double quantisation' if double else ''}"
    return Recipe(
        title, parts, lambda dtype: {**BNB, **_bnb(dtype, double=double)}, bitsandbytes.skip, _has_dtype, conv1d=True
    )


FP8 = {
    "quant_method": "fp8",
    "modules_to_not_convert": None,
    "modules_to_convert": None,
    "activation_scheme": "dynamic",
    "weight_block_size": list(TILE),
    "dequantize": False,
    "scale_fmt": "float",
    "expert_dtype": "fp8",
}
BNB = {
    "quant_method": "bitsandbytes",
    "_load_in_8bit": False,
    "_load_in_4bit": True,
    "llm_int8_threshold": 6.0,
    "llm_int8_skip_modules": None,
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_quant_storage": "uint8",
    "load_in_4bit": True,
    "load_in_8bit": False,
}


def _bnb(dtype: Dtype, *, double: bool) -> dict[str, Any]:
    return {"bnb_4bit_use_double_quant": double, "bnb_4bit_compute_dtype": NAMES[dtype]}


def _has_dtype(weight: Tensor) -> bool:
    return weight.dtype in (F16, BF16, F32)


def _divides(weight: Tensor) -> bool:
    """Whether it is of whole blocks: transformers passes others through."""
    return _has_dtype(weight) and not any(size % tile for size, tile in zip(weight.shape[-2:], TILE, strict=True))


def _fp8(name: str, weight: Tensor) -> Parts:
    rule = Rule("fp8", TILE)
    grid = tuple(size // tile for size, tile in zip(weight.shape, TILE, strict=True))
    codes = Fresh(F8, weight.shape, weight, rule)
    return {name: codes, f"{name}_scale_inv": Fresh(F32, grid, weight, rule, scales=True)}


def _nf4(name: str, weight: Tensor, block: int, *, double: bool) -> Parts:
    """Codes, scales, their table, and a JSON text. With `double`, the mean of all scales is computed here: the text
    is as long as that number is.
    """
    rule, blocks = Rule("nf4", (1, block)), -(-weight.size // block)
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": block,
        "dtype": NAMES[weight.dtype],
        "shape": list(weight.shape),
    }
    scales = Fresh(F32, (blocks,), weight, rule, scales=True)
    parts: Parts = {name: Fresh(U8, (-(-weight.size // 2), 1), weight, rule), f"{name}.absmax": scales}
    parts[f"{name}.quant_map"] = _floats(NF4)
    if double:
        offset = _mean(scales)
        outer = Rule("dynamic", (1, INNER), offset)
        parts[f"{name}.absmax"] = Fresh(U8, (blocks,), scales, outer)
        parts[f"{name}.nested_absmax"] = Fresh(F32, (-(-blocks // INNER),), scales, outer, scales=True)
        parts[f"{name}.nested_quant_map"] = _floats(dynamic_map().tolist())
        state |= {"nested_blocksize": INNER, "nested_dtype": "float32", "nested_offset": offset}
    text = json.dumps(state).encode()
    return {**parts, f"{name}{bitsandbytes.STATE}nf4": Constant(U8, (len(text),), text)}


def _floats(numbers: Sequence[float]) -> Constant:
    return Constant(F32, (len(numbers),), struct.pack(f"<{len(numbers)}f", *numbers))


def _mean(scales: Tensor) -> float:
    """The mean of all, as torch sums them in one thread."""
    with exact():
        return float(load(scales).mean())
