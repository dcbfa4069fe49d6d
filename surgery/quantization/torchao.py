"""torchao: int8 and float8 weights as transformers saves them, whose types the header of each shard tells.

`M._weight_qdata` are the codes of `M.weight`, `_scale` and `_zero_point` lie beside them; for each weight
`__metadata__` holds the name of a class of torchao's, the blocks that share a scale, and the dtype. Nothing of that is
executed. Sources: torchao 0.18 (`prototype/safetensors`, `quantize_/workflows`), transformers 5.23
(`quantizer_torchao.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..files.strict import any_value
from ..lazy.coding import Coding
from ..lazy.tensor import Decoded, reshape
from .scheme import DTYPES, Quantised, Scheme, Source
from .skip_lists import check_listed

NAMES = "tensor_names"
PLAIN = "Tensor"
INTEGERS, FLOATS = ("I8",), ("F8_E4M3", "F8_E5M2")
CLASSES = {"Int8Tensor": INTEGERS, "IntxUnpackedToInt8Tensor": INTEGERS, "Float8Tensor": FLOATS}
SCALES = tuple(dtype.name for dtype in DTYPES.values())


def find(source: Source) -> dict[str, Quantised]:
    """Every weight that the headers say is of a class that is read. Raises FormatError where they say nothing of
    codes that are here, NotSupported for another class.
    """
    told = _told(source)
    found = {name: _weight(source, name, said) for name, said in told.items() if said.get("_type") != PLAIN}
    used = {part for one in found.values() for part in (*one.parts, *one.left)}
    if lone := [name for name in source.tensors if name.endswith("_qdata") and name not in used]:
        raise source.broken("codes are here, and no header says what they mean", lone)
    check_listed(source, "modules_to_not_convert", found)
    return found


def _told(source: Source) -> dict[str, Mapping[str, Any]]:
    """What the headers say of each tensor."""
    told: dict[str, Mapping[str, Any]] = {}
    for shard, metadata in source.checkpoint.metadata.items():
        for name in _names(source, shard, metadata or {}):
            try:
                said = any_value((metadata or {})[name])
            except (KeyError, ValueError) as error:
                raise source.broken(
                    f"the header of {shard} does not say what a tensor of its list is", [name]
                ) from error
            if not isinstance(said, Mapping) or told.setdefault(name, said) != said:
                raise source.broken(f"headers say that one tensor is this and that: {said}", [f"{shard}: {name}"])
    return told


def _names(source: Source, shard: str, metadata: Mapping[str, str]) -> list[str]:
    """The tensors of which a header says something."""
    try:
        names = any_value(metadata.get(NAMES, "[]"))
    except ValueError as error:
        raise source.broken(f"the header of {shard} has a list of tensors that is no JSON: {error}", [NAMES]) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise source.broken(f"the header of {shard} has a list of tensors that is none", [NAMES])
    return names


def _weight(source: Source, name: str, said: Mapping[str, Any]) -> Quantised:
    module, _, leaf = name.rpartition(".")
    parts = {part: f"{module}._{leaf}_{part}" for part in ("qdata", "scale", "zero_point")}
    kind, data = str(said.get("_type")), said.get("_data")
    data = data if isinstance(data, Mapping) else {}
    kinds = CLASSES.get(kind, ())
    if not kinds or _plain(data.get("target_dtype", "int8")) != "int8":
        what = f"{kind} of {_plain(data.get('target_dtype'))}" if kinds else kind
        raise source.unread(
            f"weights of torchao's {what} are not read: read are {', '.join(CLASSES)} of 8 bits", [name]
        )
    codes = source.stored(parts["qdata"])
    dtype, block = DTYPES.get(str(_plain(data.get("dtype")))), _block(data.get("block_size"), codes.shape)
    if dtype is None or not block:
        raise source.broken(f"what the header says of {list(codes.shape)} codes cannot be: {json.dumps(said)}", [name])
    grid = tuple(-(-n // b) for n, b in zip(codes.shape, block, strict=True))
    held = source.tensors.get(parts["scale"])
    found = held.shape if held is not None and held.size == 1 else grid
    wanted = {parts["qdata"]: (kinds, codes.shape), parts["scale"]: (SCALES, found)}
    if zeros := parts["zero_point"] in source.tensors and kinds == INTEGERS:
        wanted[parts["zero_point"]] = (INTEGERS, found)
    source.check_shapes(name, f"blocks of {block}", wanted)
    rows, columns = (min(n, b) for n, b in zip(codes.shape[-2:], block[-2:], strict=True))
    named = {"scale": parts["scale"]} | ({"zero": parts["zero_point"]} if zeros else {})
    stored = tuple((part, reshape(source.tensors[n], grid)) for part, n in named.items())
    coding = Coding("integer" if kinds == INTEGERS else "float", None, (rows, columns))
    decoded = Decoded(dtype, codes.shape, coding, codes, stored, parts["qdata"])
    prefix, used = f"{module}._{leaf}_", (parts["qdata"], *named.values())
    left = tuple(n for n in source.tensors if n.startswith(prefix) and n not in used)
    return Quantised(f"torchao {kind}", decoded, used, left)


def _plain(value: object) -> object:
    """What is wrapped in the name of its type."""
    return value.get("_data") if isinstance(value, Mapping) else value


def _block(said: object, shape: Sequence[int]) -> list[int]:
    """How many elements of each axis share a scale, one of leading ones; [] where it is not that."""
    block = [n for n in said if type(n) is int and n > 0] if isinstance(said, list) else []
    return block if len(block) == len(shape) > 1 and all(n == 1 for n in block[:-2]) else []


def unsaid(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """A header that says nothing of what tensors are."""
    try:
        names = {NAMES, *any_value(metadata.get(NAMES, "[]"))}
    except (ValueError, TypeError):
        names = {NAMES}
    return {key: value for key, value in metadata.items() if key not in names}


WHY = "torchao chooses by name what it quantises, and has no list of single weights that transformers saves"
SCHEME = Scheme("torchao", find, why=WHY, header=unsaid)
