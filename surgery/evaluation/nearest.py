"""Codes out of numbers: what is nearest to `Encoded.of` on the grid of stored scales and zeros.

The stored code stays wherever it is among the nearest, so that what was decoded and not changed gives its own codes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.tables import E2M1
from ..lazy.tensor import Decoded, Encoded
from .arithmetic import one_thread, torch_dtype
from .decoding import (
    Band,
    bands,
    biases_of,
    by_rows,
    codes_of,
    rows_of,
    scales_of,
    spread,
    stored,
    table_of,
    values_of,
    word_rows,
    words_of,
    zeros_of,
)
from .losses import requantised
from .packing import pack, unpack
from .tiles import areas, columns_of

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_encoded(encoded: Encoded, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of the codes' tensor."""
    import torch

    one_thread()
    result = torch.frombuffer(out, dtype=torch_dtype(encoded.dtype))
    result = result.view(torch.int32) if result.dtype == torch.uint32 else result
    if encoded.like.coding.flat and encoded.like.coding.packing:
        result.copy_(_flat(encoded, start, stop, work))
        return
    wide = word_rows(encoded.like, bands(encoded.like, 0, 1)[0])[2]
    for at, end, area in areas(start, stop, wide):
        target = result[at - start : end - start].view(area.tall, area.wide)
        for band in bands(encoded.like, *_rows_behind(encoded.like, area.row, area.tall)):
            above = area.row - word_rows(encoded.like, band)[0]  # rows of words that were not asked for
            part = _words(encoded, band, work)[max(0, above) : above + area.tall]
            target[max(0, -above) :][: len(part)].copy_(part[:, area.column : area.column + area.wide])


def _rows_behind(like: Decoded, row: int, tall: int) -> tuple[int, int]:
    """The rows of W whose codes lie in rows [row, row + tall) of words: (first, how many)."""
    packing, rows = like.coding.packing, rows_of(like)
    if packing is None or not packing.down:
        return row, tall
    (first, low), (last, high) = (divmod(r, packing.length(rows)) for r in (row, row + tall - 1))
    begin = first * rows + low // packing.words * packing.fields
    end = last * rows + min(rows, (high // packing.words + 1) * packing.fields)
    return begin, end - begin


def _words(encoded: Encoded, band: Band, work: Workspace) -> torch.Tensor:
    """The rows of words of a band, as they shall be. Fields behind the last element stay what they are."""
    like, packing = encoded.like, encoded.like.coding.packing
    values = _values(encoded, band, work)
    if packing is None:
        return nearest(like, band, values, codes_of(like, band, work), work)
    words = words_of(like, band, work, "words")
    fields = unpack(words, packing)
    held = fields[: band.tall, : band.wide]
    held.copy_(nearest(like, band, values, held, work))
    return pack(fields, packing)[: words.shape[0], : words.shape[1]]


def _flat(encoded: Encoded, start: int, stop: int, work: Workspace) -> torch.Tensor:
    """Elements [start, stop) of codes that run through the whole tensor."""
    import torch

    like, packing = encoded.like, encoded.like.coding.packing
    assert packing
    item = encoded.dtype.bits // 8
    words = stored(like.codes, start, stop - start, work, "words").view(torch.uint8)
    fields = unpack(words[None], packing)[0]
    first, wide = start * item * packing.fields, columns_of(like)
    last = min(first + len(fields), like.size)
    for band in bands(like, first // wide, -(-last // wide) - first // wide) if first < last else []:
        low, high = max(first, band.start), min(last, band.start + band.size)
        codes = codes_of(like, band, work).clone()
        found = nearest(like, band, _values(encoded, band, work), codes, work, (low - band.start, high - band.start))
        fields[low - first : high - first] = found.reshape(-1)[low - band.start : high - band.start]
    return pack(fields[None], packing)[0].view(torch_dtype(encoded.dtype))


def _values(encoded: Encoded, band: Band, work: Workspace) -> torch.Tensor:
    """The numbers of a band that are to be coded, in float32."""
    import torch

    raw = work.buffer(f"encoded {work.depth}", band.size * 4)
    work.fill_under(encoded.of, band.start, band.start + band.size, raw)
    return torch.frombuffer(raw, dtype=torch.float32).view(band.tall, band.wide)


def nearest(
    like: Decoded,
    band: Band,
    values: torch.Tensor,
    held: torch.Tensor,
    work: Workspace,
    counted: tuple[int, int] | None = None,
) -> torch.Tensor:
    """The codes nearest to `values`; `held` are those there now. What that loses is counted, of elements `counted`."""
    import torch

    before = values_of(like, band, held, work)
    found = _candidates(like, band, values, work)
    after = values_of(like, band, found, work)
    stays = (before - values).abs_() <= (after - values).abs_()
    bits = held.view(torch.uint8) if held.element_size() == 1 else held
    codes = torch.where(stays, bits, found.view(bits.dtype)).view(held.dtype)
    after = torch.where(stays, before, after)
    part = slice(*counted) if counted else slice(None)
    work.loss += requantised(before.flatten()[part], values.flatten()[part], after.flatten()[part])
    return codes


def _candidates(like: Decoded, band: Band, values: torch.Tensor, work: Workspace) -> torch.Tensor:
    """Codes whose numbers times the scales are nearest to the values, but for ties."""
    import torch

    coding = like.coding
    scales = spread(like, band, by_rows(like, band, scales_of(like, band, work)), work) * coding.after
    if (biases := biases_of(like, band, work)) is not None:
        values = values - spread(like, band, by_rows(like, band, biases), work)
    ratio = torch.nan_to_num(values / scales, nan=0.0)
    if coding.numbers == "float":
        kind = torch_dtype(like.codes.dtype)
        most = torch.finfo(kind).max
        return ratio.clamp_(-most, most).to(kind)
    if coding.numbers == "e2m1":
        return _above(ratio.abs(), _midpoints(torch.tensor(E2M1))).add_(torch.signbit(ratio), alpha=8)
    if coding.numbers == "table":
        table, order = table_of(like, work).sort(stable=True)
        places = _above(ratio, _midpoints(table))
        if torch.equal(order, torch.arange(len(order))):
            return places
        return torch.index_select(order.to(torch.uint8), 0, places.flatten().to(torch.int32)).view(places.shape)
    if (zeros := zeros_of(like, band, work)) is not None:
        ratio += spread(like, band, by_rows(like, band, zeros), work)
    low, high = (0, (1 << coding.packing.bits) - 1) if coding.packing else (coding.low, coding.high)
    return (ratio + coding.offset).round_().clamp_(low, high).to(torch.uint8 if coding.packing else torch.int8)


def _above(values: torch.Tensor, ascending: torch.Tensor) -> torch.Tensor:
    """How many of a few numbers each value is above."""
    import torch

    found = torch.zeros(values.shape, dtype=torch.uint8)
    for number in ascending.tolist():
        found += values > number
    return found


def _midpoints(ascending: torch.Tensor) -> torch.Tensor:
    return (ascending[1:] + ascending[:-1]) / 2
