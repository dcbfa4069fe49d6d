"""An adapter in GGUF: its tensors as they lie, and what it says of itself."""

from __future__ import annotations

from collections.abc import Mapping

from ...lazy.dtypes import DTYPES
from ...lazy.tensor import File, Stored
from .header import Header, Info, read_header

ENDING = ".gguf"


def read_adapter(path: str) -> tuple[File, dict[str, Stored], Mapping[str, str]] | None:
    """The file, its tensors by name, and the texts and numbers of its metadata, where it says that it is an adapter;
    else None. Blocks of codes are bytes, which no factor is. Raises FormatError.
    """
    header = read_header(path)
    if header.text("general.type") != "adapter":
        return None
    tensors = {one.name: _stored(header, one) for one in header.tensors}
    said = {key: repr(value) if isinstance(value, float) else str(value) for key, value in header.metadata.items()}
    return header.file, tensors, said


def _stored(header: Header, one: Info) -> Stored:
    if one.kind.dtype:
        return Stored(one.kind.dtype, one.shape, header.file, one.offset)
    return Stored(DTYPES["U8"], (one.nbytes,), header.file, one.offset)
