"""bitsandbytes: NF4 and FP4, whose codes run through the whole tensor, and LLM.int8, with a scale for each row.

Sources: bitsandbytes 0.50.2 (`functional.py`, `backends/default/ops.py`), transformers 5.23 (`quantizer_bnb_4bit.py`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from ..files.strict import any_value
from ..lazy.coding import Coding, Packing
from ..lazy.tables import FP4, NF4
from ..lazy.tensor import Decoded, Shape, Tensor, reshape
from .claimed_shapes import check_claimed
from .scheme import DTYPES, Quantised, Scheme, Source, module_of
from .skip_lists import check_listed, extended

STATE = ".quant_state.bitsandbytes__"
MOST = 1e30  # that the mean of scales may be: float32 holds it
PER_127 = 0.007874015718698502  # 1 / 127 in float32, by which bitsandbytes multiplies
NIBBLES = Packing(4, 8, order=(1, 0))
LIST = "llm_int8_skip_modules"
NESTED = ("nested_absmax", "nested_quant_map")
SMALL = (".quant_map", "weight_format")
COMPANIONS = (".absmax", ".quant_map", ".weight_format", *(f".{name}" for name in NESTED))
RESTORE = "restore config.json from where the model was published: its tensors tell what they are"
FIELDS = {"quant_type": str, "blocksize": int, "dtype": str, "shape": list}


def find(source: Source) -> dict[str, Quantised]:
    """NF4, FP4 and int8 weights: their companions tell. Raises FormatError where these contradict each other."""
    found: dict[str, Quantised] = {}
    small = source.contents([name for name in source.tensors if STATE in name or name.endswith(SMALL)])
    for name in source.tensors:
        weight, is_state, kind = name.partition(STATE)
        if is_state:
            found[weight] = _four_bits(source, weight, kind, small)
        elif name.endswith(".SCB"):
            weight = f"{name.removesuffix('.SCB')}.weight"
            found[weight] = _eight_bits(source, weight, name, small)
    used = {part for one in found.values() for part in (*one.parts, *one.left)}
    if lone := [name for name in source.tensors if name.endswith(COMPANIONS) and name not in used]:
        raise source.broken("scales lie here without what says whose they are", lone)
    _check_bits(source, found)
    _check_said(source, found)
    check_claimed(source, {name: (one.parts[-1], _shape(one.weight)) for name, one in found.items() if _is_four(one)})
    check_listed(source, LIST, found)
    return found


def _is_four(one: Quantised) -> bool:
    return STATE in one.parts[-1]


def _shape(weight: Tensor) -> Shape:
    """The shape (out, in) of a weight as files of 16 bits have it."""
    return weight.shape if isinstance(weight, Decoded) else weight.shape[::-1]


def _check_bits(source: Source, found: Mapping[str, Quantised]) -> None:
    """Raise FormatError where all is said to be in 8 bits, and is not, or the reverse."""
    for bits, other in ((4, 8), (8, 4)):
        these = [name for name, one in found.items() if _is_four(one) is (bits == 4)]
        if these and source.said.get(f"load_in_{other}bit") and not source.said.get(f"load_in_{bits}bit"):
            what = f"weights in {bits} bits are said to be in {other}"
            raise source.broken(what, [f"load_in_{other}bit: true", *these], RESTORE)


def _check_said(source: Source, found: Mapping[str, Quantised]) -> None:
    """Raise FormatError where config.json says another kind of 4 bits than lies there, or that scales are quantised
    themselves where they are not, or the reverse.
    """
    four = {name: one for name, one in found.items() if _is_four(one)}
    kind, double = source.said.get("bnb_4bit_quant_type"), source.said.get("bnb_4bit_use_double_quant")
    wrong = [one.parts[-1] for one in four.values() if kind and not one.parts[-1].endswith(STATE + str(kind))]
    if wrong:
        raise source.broken(f"codes of 4 bits are not {kind}", [f"bnb_4bit_quant_type: {kind}", *wrong], RESTORE)
    is_nested = {name: f"{name}.nested_absmax" in one.parts for name, one in four.items()}
    wrong = [
        f"{name}.absmax" for name, nested in is_nested.items() if isinstance(double, bool) and nested is not double
    ]
    if wrong:
        what = f"scales are {'not ' if double else ''}quantised themselves, and config.json says the reverse"
        raise source.broken(what, [f"bnb_4bit_use_double_quant: {double}", *wrong], RESTORE)


def _four_bits(source: Source, weight: str, kind: str, small: Mapping[str, bytes]) -> Quantised:
    """What the JSON in the file says, held against the tensors."""
    blob = f"{weight}{STATE}{kind}"
    state = _state(source, blob, kind, small[blob])
    shape, block, double = tuple(state["shape"]), state["blocksize"], "nested_offset" in state
    named = {"scale": f"{weight}.absmax", "table": f"{weight}.quant_map"}
    named |= {"map": f"{weight}.nested_quant_map", "inner": f"{weight}.nested_absmax"} if double else {}
    inner = int(state.get("nested_blocksize", 256))
    blocks = -(-prod(shape) // block)
    sizes = {"scale": blocks, "table": 16, "map": 256, "inner": -(-blocks // inner)}
    codes = source.stored(weight)
    source.check_sizes(weight, {named[part]: sizes[part] for part in named})
    if codes.nbytes != -(-prod(shape) // 2):
        what = f"{weight} has {codes.nbytes} bytes of codes, and its shape {list(shape)} needs {-(-prod(shape) // 2)}"
        raise source.broken(what, [weight, blob])
    _check_scales(source, weight, double=double)
    _check_table(source, named["table"], kind, small[named["table"]])
    coding = Coding(
        "table",
        NIBBLES,
        (1, block),
        "nested" if double else "plain",
        flat=True,
        nested=inner,
        shift=float(state.get("nested_offset", 0.0)),
    )
    parts = tuple((part, source.tensors[name]) for part, name in named.items())
    decoded = Decoded(DTYPES[state["dtype"]], shape, coding, codes, parts, weight)
    title = f"bitsandbytes {kind.upper()}, blocks of {block}{', double quantisation' if double else ''}"
    return Quantised(title, source.as_filed(module_of(weight), decoded), (weight, *named.values(), blob))


def _check_scales(source: Source, weight: str, *, double: bool) -> None:
    """Raise FormatError where scales are codes themselves and the JSON says nothing of that, or the reverse."""
    nested = [name for last in NESTED if (name := f"{weight}.{last}") in source.tensors]
    dtype = source.tensors[f"{weight}.absmax"].dtype.name
    if bool(nested) != double or (dtype == "U8") != double:
        what = (
            f"the scales of {weight} are {dtype}, and the JSON says that they are{'' if double else ' not'} quantised"
        )
        raise source.broken(what, [f"{weight}.absmax", *nested])


def _check_table(source: Source, name: str, kind: str, raw: bytes) -> None:
    """Raise FormatError unless the table is that of the kind: bitsandbytes' kernels take their own, not the file's."""
    wanted = NF4 if kind == "nf4" else FP4
    numbers = struct.unpack("<16f", raw) if len(raw) == 64 else ()
    if len(numbers) != 16 or any(abs(one - other) > 1e-6 for one, other in zip(numbers, wanted, strict=True)):
        raise source.broken(f"the table of what codes mean is not that of {kind.upper()}", [name])


def _state(source: Source, blob: str, kind: str, raw: bytes) -> Mapping[str, Any]:
    """The JSON, with what it must say in it. Raises FormatError."""
    try:
        state = any_value(raw)
    except ValueError as error:
        raise source.broken(f"what says how a weight is quantised is no JSON: {error}", [blob]) from error
    if not isinstance(state, dict) or any(not isinstance(state.get(key), type_) for key, type_ in FIELDS.items()):
        raise source.broken(f"what says how a weight is quantised lacks one of {', '.join(FIELDS)}", [blob])
    sizes = [*state["shape"], state["blocksize"], state.get("nested_blocksize", 256)]
    shift = state.get("nested_offset", 0.0)  # the mean of scales, which are absolute values
    numbers = all(type(n) is int and n > 0 for n in sizes) and isinstance(shift, float | int) and 0 <= shift < MOST
    if state["quant_type"] != kind or state["dtype"] not in DTYPES or not numbers:
        raise source.broken(f"what says how a weight is quantised cannot be: {json.dumps(state)}", [blob])
    return state


def _eight_bits(source: Source, weight: str, scale: str, small: Mapping[str, bytes]) -> Quantised:
    """LLM.int8: its outliers lie in the activations, so that each row of the weight is codes times a scale."""
    codes, form = source.stored(weight), f"{weight}_format"
    if codes.dtype.name != "I8" or len(codes.shape) != 2:
        raise source.broken(
            f"{weight} is {codes.dtype} {list(codes.shape)}, and int8 codes are a matrix of I8", [scale]
        )
    source.check_sizes(weight, {scale: codes.shape[0]})
    if (how := small.get(form, b"\0")) != b"\0":
        what = (
            f"the codes of {weight} are in the order {how[0]} of a GPU of its time, which bitsandbytes refuses as well"
        )
        raise source.broken(what, [form], "quantise the model again")
    coding = Coding("integer", None, (1, codes.shape[1]), low=-127, after=PER_127)
    column = reshape(source.tensors[scale], (codes.shape[0], 1))
    decoded = Decoded(source.dtype, codes.shape, coding, codes, (("scale", column),), weight)
    left = (form,) if form in source.tensors else ()
    return Quantised("bitsandbytes LLM.int8", source.as_filed(module_of(weight), decoded), (weight, scale), left)


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """The list has the name of int8's for 4 bits as well; where there is none, loaders leave the head out."""
    return extended(said, LIST, modules, quantised)


def restated(state: bytes, shape: Shape) -> bytes:
    """The JSON of a weight of another shape, as bitsandbytes writes it."""
    return json.dumps({**json.loads(state), "shape": list(shape)}).encode()


SCHEME = Scheme("bitsandbytes", find, skip, shape_in=STATE, restated=restated)
