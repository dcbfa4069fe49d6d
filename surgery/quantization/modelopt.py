"""ModelOpt of NVIDIA: FP8 with a scale for each matrix, row or block, NVFP4, MXFP4 and MXFP8.

What is quantised, and how, is told by the tensors; config.json or hf_quant_config.json names the algorithm and the
modules that are left out, with wildcards. Sources: nvidia-modelopt 0.47 (`quantization/qtensor/`), vLLM `modelopt.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..lazy.coding import Coding, Packing
from ..lazy.tensor import Decoded, reshape
from ..names import natural
from . import fp8
from .compressed_tensors import CACHE
from .scheme import Quantised, Scheme, Source

FILE = "hf_quant_config.json"
BYTES = ("U8", "F8_E8M0")
NIBBLES = Packing(4, 8)
PARTS = ("weight_scale", "weight_scale_2")
LEFT = ("input_scale",)
STACKED = "_weight_scale"
# What an algorithm's name says that is not read, by a regular expression.
UNREAD = {
    "FP6": "they are floats of 6 bits",
    "^(W4A.*AWQ|INT4|W8A|INT8)": "they are integers, which ModelOpt lays out for TensorRT-LLM",
    "SVD": "a part of low rank lies beside them",
}


def find(source: Source) -> dict[str, Quantised]:
    """Every weight of codes. Raises FormatError where codes, scales and the lists contradict each other, NotSupported
    for algorithms that change the model around its weights, or that are not read.
    """
    said = inner(source.said)
    if scaled := [n for n in source.tensors if n.endswith(".pre_quant_scale")]:
        what = f"{said.get('quant_algo')} multiplies the inputs of its weights, which mean nothing without that"
        raise source.unread(what, scaled)
    _check_algorithm(source)
    coded = {n: t for n, t in source.tensors.items() if n.endswith(".weight") and t.dtype.name in ("U8", *fp8.FLOATS)}
    if wrong := [n for n in coded if left_out(said, n.removesuffix(".weight"))]:
        raise source.broken("weights are quantised that are listed as left out", wrong)
    found = {name: _weight(source, name) for name in coded}
    used = {name for one in found.values() for name in one.parts}
    if stray := [n for n in source.tensors if n.rpartition(".")[2] in PARTS and n not in used]:
        raise source.broken("scales lie here, and no codes that they belong to", stray)
    named = said.get("quantized_layers")
    plain = [n for m in named if (n := f"{m}.weight") in source.tensors and n not in found] if named else []
    if plain:
        raise source.broken("weights are said to be quantised (`quantized_layers`), and are not", plain)
    return found


def _check_algorithm(source: Source) -> None:
    """Raise NotSupported for what no scheme here has, and for experts that lie in one parameter; FormatError where
    the algorithm has 4 bits, and no weight has, or the reverse.
    """
    algorithm = str(inner(source.said).get("quant_algo") or "").upper()
    if why := next((why for pattern, why in UNREAD.items() if re.search(pattern, algorithm)), ""):
        raise source.unread(f"weights quantised by ModelOpt as {algorithm} are not read: {why}")
    if stacked := [n for n in source.tensors if n.endswith(STACKED)]:
        raise source.unread("experts that lie in one parameter are not read as ModelOpt quantises them", stacked)
    kinds = {n: t.dtype.name for n, t in source.tensors.items() if n.endswith(".weight")}
    four, eight = ([n for n, kind in kinds.items() if kind in these] for these in (("U8",), fp8.FLOATS))
    if wrong := four if algorithm.startswith("FP8") else eight if algorithm.startswith("NVFP4") and not four else []:
        raise source.broken(f"config says {algorithm}, and codes are {kinds[wrong[0]]}", wrong)


def inner(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said, which hf_quant_config.json has one level deeper."""
    nested = said.get("quantization")
    return nested if isinstance(nested, Mapping) else said


def _key(said: Mapping[str, Any]) -> str:
    return "exclude_modules" if "exclude_modules" in said or "ignore" not in said else "ignore"


def left_out(said: Mapping[str, Any], module: str) -> bool:
    """Whether the list of modules that are left out has this one, or one that it is in."""
    entries = said.get(_key(said))
    return any(fnmatchcase(module, str(e)) or module.startswith(f"{e}.") for e in entries or [])


def _weight(source: Source, name: str) -> Quantised:
    codes, scale_name = source.tensors[name], f"{name}_scale"
    source.check_there(name, [scale_name])
    scale = source.tensors[scale_name]
    left = tuple(n for last in LEFT if (n := f"{name.removesuffix('.weight')}.{last}") in source.tensors)
    if len(codes.shape) < 2:
        raise source.broken(f"{name} is quantised, and no matrix: {list(codes.shape)}", [name])
    if codes.dtype.name == "U8" or scale.dtype.name in BYTES:
        title, decoded, more = _grouped(source, name, scale_name)
        return Quantised(f"ModelOpt {title}", decoded, (name, scale_name, *more), left)
    block = (128, 128) if scale.size > 1 else None
    held = reshape(scale, (scale.size, 1)) if scale.shape == codes.shape[:1] and scale.size > 1 else scale
    per_row = held.shape == (codes.shape[0], 1) and held.size > 1
    found, held = fp8.groups(source, name, scale_name, codes.shape, held, None if per_row else block)
    parts = (("scale", held),)
    decoded = Decoded(source.dtype, codes.shape, Coding("float", None, found), codes, parts, name)
    how = "a scale for each row" if per_row else f"blocks of {found[0]} x {found[1]}" if block else "one scale"
    return Quantised(f"ModelOpt FP8, {how}", decoded, (name, scale_name), left)


def _grouped(source: Source, name: str, scale_name: str) -> tuple[str, Decoded, tuple[str, ...]]:
    """Codes with a scale for a group of columns: what it is called, the weight, and the names of other parts."""
    codes, scale, outer = source.tensors[name], source.tensors[scale_name], f"{name}_scale_2"
    four, powers = codes.dtype.name == "U8", scale.dtype.name in BYTES
    shape = (*codes.shape[:-1], codes.shape[-1] * (2 if four else 1))
    size = 32 if powers else 16
    if scale.shape != (*shape[:-1], -(-shape[-1] // size)) or not (powers or scale.dtype.name == "F8_E4M3"):
        what = f"{name} of {list(shape)} needs a scale for {size} columns, and has {scale.dtype} {list(scale.shape)}"
        raise source.broken(what, [scale_name])
    parts = [("scale", scale)]
    if not powers:
        source.check_sizes(name, {outer: 1})
        parts.append(("outer", source.tensors[outer]))
    coding = Coding(
        "e2m1" if four else "float", NIBBLES if four else None, (1, size), "exponent" if powers else "product"
    )
    decoded = Decoded(source.dtype, shape, coding, codes, tuple(parts), name)
    title = f"{'MX' if powers else 'NV'}FP{4 if four else 8}, groups of {size}"
    return title, decoded, () if powers else (outer,)


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """The list goes by two names; nothing is left out that it does not have."""
    deeper = inner(said)
    wanted = [module for module in sorted(modules, key=natural) if not left_out(deeper, module)]
    now = {**deeper, _key(deeper): [*(deeper.get(_key(deeper)) or []), *wanted]}
    return now if deeper is said else {**said, "quantization": now}


SCHEME = Scheme("modelopt", find, skip, aliases=("modelopt_fp4",), activations=CACHE, files=(FILE,))
