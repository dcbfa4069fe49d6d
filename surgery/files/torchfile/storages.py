"""torch's own records: what a storage is, what a tensor is of it, and which of them cannot be told as bytes.

Source: torch 2.13, torch/_utils.py `_rebuild_*`, torch/serialization.py `persistent_id`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...lazy.dtypes import DTYPES, Dtype
from .records import Call, Global, Leaf, Persistent, told

_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
}  # fmt: skip
# Bytes an element of storages whose values safetensors cannot hold.
_OTHERS = {
    "ComplexDoubleStorage": 16, "QInt8Storage": 1, "QUInt8Storage": 1, "QInt32Storage": 4, "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
}  # fmt: skip
_DTYPES = {
    "float32": "F32", "float": "F32", "float16": "F16", "half": "F16", "bfloat16": "BF16", "float64": "F64",
    "double": "F64", "int64": "I64", "long": "I64", "int32": "I32", "int": "I32", "int16": "I16", "short": "I16",
    "int8": "I8", "uint8": "U8", "bool": "BOOL", "complex64": "C64", "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float4_e2m1fn_x2": "F4",
}  # fmt: skip
_MOST = 1 << 63  # no number of elements is as large
_BYTES = "UntypedStorage"
_WIDTHS = {**{kind: DTYPES[name].bits // 8 for kind, name in _STORAGES.items()}, **_OTHERS, _BYTES: 1}
_PLAIN = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_AROUND = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
# What makes tensors that are no strided bytes.
STRANGE = {
    "_rebuild_qtensor": "a quantised tensor of torch's own",
    "_rebuild_sparse_tensor": "a sparse tensor",
    "_rebuild_sparse_csr_tensor": "a sparse tensor",
    "_rebuild_nested_tensor": "a nested tensor",
    "_rebuild_meta_tensor_no_storage": "a tensor without values",
    "_rebuild_device_tensor_from_numpy": "a tensor of another device",
    "_rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "_rebuild_wrapper_subclass": "a part of a tensor that is spread over several ranks",
    "_rebuild_xla_tensor": "a tensor of another device",
    "_rebuild_njt": "a nested tensor",
    "UninitializedParameter": "a parameter without values",
    "UninitializedBuffer": "a buffer without values",
}
_ARRAYS = {"_reconstruct", "_frombuffer"}


@dataclass(frozen=True, slots=True)
class Described(Leaf):
    """A tensor as the pickle describes it: of the storage `key`, of `count` elements of `width` bytes each."""

    key: str
    count: int
    width: int
    dtype: Dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Unreadable(ValueError):
    """What is no tensor that can be read, and why."""


def described(value: Any) -> Described | None:
    """The tensor that a record describes; None for what is no tensor. Raises Unreadable."""
    for _ in range(8):  # parameters, sub-classes and parameters of these
        if not (isinstance(value, Call) and isinstance(value.function, Global)):
            return None
        module, name = value.function.module, value.function.name
        args = value.args if isinstance(value.args, tuple) else ()
        if module == "torch._tensor" and name == "_rebuild_from_type_v2" and len(args) >= 3:
            value = Call(args[0], args[2])
        elif module == "torch._utils" and name in _AROUND and args:
            value = args[0]
        elif module == "torch._utils" and name in _PLAIN:
            return _plain(name, args)
        elif module.partition(".")[0] == "torch" and name in STRANGE:
            raise Unreadable(STRANGE[name])
        elif module == "torch._utils" and name.startswith("_rebuild_"):
            raise Unreadable(f"a tensor that is made by {name}")
        else:
            return None
    raise Unreadable("a tensor in more wrappings than torch makes")


def array(value: Any) -> str | None:
    """What holds values and is no tensor, in words; None for all else."""
    if isinstance(value, Call) and isinstance(value.function, Global):
        function = value.function
        if function.module.partition(".")[0] == "numpy" and function.name in _ARRAYS:
            return "an array of numpy's"
        if function.module == "torch.storage" and isinstance(value.state, dict):
            return "a storage, and no tensor"
    return "a storage, and no tensor" if isinstance(value, Persistent) else None


def _plain(name: str, args: tuple[Any, ...]) -> Described:
    if len(args) < 4:
        raise Unreadable("a tensor without offset, size or strides")
    key, kind, width, count = storage(args[0])
    said = args[6] if name.endswith("v3") and len(args) > 6 else None
    if said is None and kind not in _STORAGES:
        what = "a tensor of bytes whose type is not said" if kind == _BYTES else f"a tensor of torch.{kind}"
        raise Unreadable(what)
    dtype = DTYPES[_STORAGES[kind]] if said is None else _dtype(said)
    more = args[7:8] if name.endswith("v3") else args[6:7]
    if more and isinstance(more[0], dict) and any(more[0].get(bit) for bit in ("conj", "neg")):
        raise Unreadable("a tensor that is to be negated or conjugated when it is read")
    offset, shape, strides = _whole(args[1]), sizes_of(args[2]), sizes_of(args[3])
    if dtype.bits < 8:
        offset, shape, strides = _in_pairs(offset, shape, strides)
    return Described(key, count, width, dtype, offset, shape, strides)


def _in_pairs(
    offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """The numbers of a tensor of two numbers an element, which lie along its last axis."""
    if not shape or len(shape) != len(strides) or strides[-1] != 1:
        raise Unreadable("a tensor of two numbers a byte that do not follow one another")
    return 2 * offset, (*shape[:-1], 2 * shape[-1]), (*(2 * step for step in strides[:-1]), 1)


def storage(value: Any) -> tuple[str, str, int, int]:
    """A storage's key, its type, bytes an element, and how many elements. Raises Unreadable."""
    said = value.said if isinstance(value, Persistent) else None
    if not (isinstance(said, tuple) and len(said) in (5, 6) and said[0] == "storage" and isinstance(said[2], str)):
        raise Unreadable("a tensor without a storage")
    if said[5:] not in ((), (None,)):
        raise Unreadable("a tensor of a view of a storage, as torch before 0.4 wrote them")
    kind = said[1]
    if not (isinstance(kind, Global) and kind.module.partition(".")[0] == "torch" and kind.name in _WIDTHS):
        raise Unreadable(f"a storage of type {told(kind)}")
    return said[2], kind.name, _WIDTHS[kind.name], _whole(said[4])


def _dtype(said: Any) -> Dtype:
    if isinstance(said, Global) and said.module == "torch" and said.name in _DTYPES:
        return DTYPES[_DTYPES[said.name]]
    raise Unreadable(f"a tensor of dtype {told(said)}")


def _whole(value: Any) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise Unreadable(f"{told(value)} in the place of a number of elements")
    return value


def sizes_of(value: Any) -> tuple[int, ...]:
    """A tensor's sizes or strides. Raises Unreadable."""
    if isinstance(value, Call) and isinstance(value.function, Global) and value.function.name == "Size":
        value = value.args[0] if isinstance(value.args, tuple) and value.args else ()
    if not isinstance(value, tuple) or len(value) > 64:
        raise Unreadable(f"{told(value)} in the place of sizes")
    if value and (set(map(type, value)) != {int} or min(value) < 0 or max(value) >= _MOST):
        raise Unreadable(f"{told(value)} in the place of sizes")
    return value
