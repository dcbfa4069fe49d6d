"""Numbers that files of adapters hold as tensors: an alpha, a threshold."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import closing

from ...errors import FormatError, listed
from ...evaluation.read import Reader
from ...lazy.dtypes import BF16, F16, F32, F64, Dtype
from ...lazy.tensor import Stored, Tensor

_FLOATS: Mapping[Dtype, Callable[[bytes], float]] = {
    F64: lambda raw: struct.unpack("<d", raw)[0],
    F32: lambda raw: struct.unpack("<f", raw)[0],
    F16: lambda raw: struct.unpack("<e", raw)[0],
    BF16: lambda raw: struct.unpack("<f", b"\0\0" + raw)[0],
}


def scalars(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers that these tensors of one element hold. Raises FormatError for others; reads each."""
    wrong = [f"{name}: {t.dtype} {t.shape}" for name, t in tensors.items() if t.size != 1 or _reads(t) is None]
    if wrong:
        tip = "alphas are one number each: the file was not written by a tool that is known"
        raise FormatError("a tensor that holds a number is none", where=listed(wrong), help=tip)
    with closing(Reader()) as reader:
        return {name: _read(reader, tensor) for name, tensor in tensors.items()}


def _reads(tensor: Tensor) -> Callable[[bytes], float] | None:
    if tensor.dtype in _FLOATS:
        return _FLOATS[tensor.dtype]
    whole = tensor.dtype.name in ("I64", "I32", "I16", "I8", "U8")
    return (lambda raw: float(int.from_bytes(raw, "little", signed=tensor.dtype.name != "U8"))) if whole else None


def _read(reader: Reader, tensor: Tensor) -> float:
    reads = _reads(tensor)
    assert isinstance(tensor, Stored) and reads is not None
    raw = bytearray(tensor.nbytes)
    reader.read(tensor.file, tensor.offset, memoryview(raw))
    return reads(bytes(raw))
