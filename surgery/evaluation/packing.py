"""Codes out of words, and into them: a `Packing` carried out on a matrix of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.coding import Packing

if TYPE_CHECKING:
    import torch


def unpack(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The codes in a matrix of words, as bytes: all fields, those behind the last element too."""
    import torch

    words = words.view(torch.int32) if words.dtype == torch.uint32 else words
    if packing.words > 1:
        return _stream(words.t(), packing).t() if packing.down else _stream(words, packing)
    rows, columns = words.shape
    fields = torch.empty((rows, packing.fields, columns), dtype=torch.uint8)
    for field, element in enumerate(packing.order or range(packing.fields)):
        fields[:, element] = (words >> (field * packing.bits)) & ((1 << packing.bits) - 1)
    return fields.view(-1, columns) if packing.down else fields.transpose(1, 2).reshape(rows, -1)


def pack(codes: torch.Tensor, packing: Packing) -> torch.Tensor:
    """What `unpack` takes apart: words of uint8 or int32."""
    import torch

    if packing.words > 1:
        return _into_stream(codes.t(), packing).t() if packing.down else _into_stream(codes, packing)
    kind = torch.uint8 if packing.word == 8 else torch.int32
    columns = codes.shape[1]
    fields = codes.view(-1, packing.fields, columns) if packing.down else codes.reshape(len(codes), -1, packing.fields)
    words = torch.zeros(fields[:, 0].shape if packing.down else fields[..., 0].shape, dtype=kind)
    for field, element in enumerate(packing.order or range(packing.fields)):
        part = fields[:, element] if packing.down else fields[..., element]
        words |= part.to(kind) << (field * packing.bits)
    return words


def in_bytes(packing: Packing) -> bool:
    """Whether each byte holds whole fields that follow each other along a row."""
    local = packing.order in ((), (1, 0)) if packing.word == 8 else not packing.order
    return local and not packing.down and not 8 % packing.bits and not packing.word % packing.bits


def byte_table(values: torch.Tensor, packing: Packing) -> torch.Tensor:
    """[256, fields of a byte]: what each byte means, of `values` by code."""
    import torch

    one = Packing(packing.bits, 8, order=packing.order)
    return values[unpack(torch.arange(256, dtype=torch.uint8)[:, None], one).to(torch.int64)]


def _stream(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Codes that may end in the next word."""
    import torch

    rows, mask = words.shape[0], (1 << packing.bits) - 1
    words = torch.nn.functional.pad(words, (0, -words.shape[1] % packing.words))
    stream = words.contiguous().view(torch.uint8).view(rows, -1, packing.bits).to(torch.int64)
    eight = (stream << _places(packing.bits, 8)).sum(-1, dtype=torch.int64)
    return ((eight[..., None] >> _places(8, packing.bits)) & mask).to(torch.uint8).view(rows, -1)


def _into_stream(codes: torch.Tensor, packing: Packing) -> torch.Tensor:
    import torch

    rows = codes.shape[0]
    eight = (codes.reshape(rows, -1, 8).to(torch.int64) << _places(8, packing.bits)).sum(-1, dtype=torch.int64)
    stream = (eight[..., None] >> _places(packing.bits, 8)) & 255
    return stream.to(torch.uint8).view(rows, -1).view(torch.int32)


def _places(count: int, bits: int) -> torch.Tensor:
    import torch

    return torch.arange(count) * bits
