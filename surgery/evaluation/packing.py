"""Codes out of words, and into them: a `Packing` carried out on a matrix of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.coding import Packing

if TYPE_CHECKING:
    import torch


def unpack(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The codes in a matrix of words, as bytes: all fields, those behind the last element too."""
    if packing.down:
        return _along_rows(words.t(), packing).t()
    return _along_rows(words, packing)


def pack(codes: torch.Tensor, packing: Packing) -> torch.Tensor:
    """What `unpack` takes apart: words of uint8 or int32."""
    if packing.down:
        return _into_words(codes.t(), packing).t()
    return _into_words(codes, packing)


def _along_rows(words: torch.Tensor, packing: Packing) -> torch.Tensor:
    import torch

    rows, mask = words.shape[0], (1 << packing.bits) - 1
    if packing.words > 1:
        stream = words.contiguous().view(torch.uint8).view(rows, -1, packing.bits).to(torch.int64)
        eight = (stream << _places(packing.bits, 8)).sum(-1, dtype=torch.int64)
        return ((eight[..., None] >> _places(8, packing.bits)) & mask).to(torch.uint8).view(rows, -1)
    fields = words.new_empty((rows, words.shape[1], packing.fields), dtype=torch.uint8)
    for field, element in enumerate(packing.order or range(packing.fields)):
        fields[..., element] = (words >> (field * packing.bits)) & mask
    return fields.view(rows, -1)


def _into_words(codes: torch.Tensor, packing: Packing) -> torch.Tensor:
    import torch

    rows = codes.shape[0]
    if packing.words > 1:
        eight = (codes.reshape(rows, -1, 8).to(torch.int64) << _places(8, packing.bits)).sum(-1, dtype=torch.int64)
        stream = (eight[..., None] >> _places(packing.bits, 8)) & 255
        return stream.to(torch.uint8).view(rows, -1).view(torch.int32)
    fields = codes.reshape(rows, -1, packing.fields)
    words = torch.zeros(fields.shape[:2], dtype=torch.int64)
    for field, element in enumerate(packing.order or range(packing.fields)):
        words |= fields[..., element].to(torch.int64) << (field * packing.bits)
    if packing.word == 8:
        return words.to(torch.uint8)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _places(count: int, bits: int) -> torch.Tensor:
    import torch

    return torch.arange(count) * bits
