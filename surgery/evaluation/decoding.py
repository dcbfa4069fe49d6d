"""Numbers out of codes: rows of a `Decoded`, in float32, rounded once.

Any row is made of its own codes, zeros and scales; where codes run down columns, some rows are made together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..lazy.dtypes import F32
from ..lazy.tables import E2M1_CODES
from ..lazy.tensor import Decoded, Tensor
from .arithmetic import one_thread, torch_dtype
from .blocks import fill_blocks
from .packing import byte_table, in_bytes, unpack
from .scales import SCALES, broken, check_finite, check_possible
from .tiles import areas, columns_of

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

BAND = 1 << 18  # elements that are decoded at once, or a row
TALL = 1 << 20  # the same where codes run down columns, of which fewer rows would be read in shorter runs


@dataclass(frozen=True, slots=True)
class Band:
    """Rows [row, row + tall) of one of the matrices of a tensor."""

    matrix: int
    row: int
    tall: int
    wide: int
    rows: int  # of the matrix

    @property
    def start(self) -> int:
        """Its first element, counted through the whole tensor."""
        return (self.matrix * self.rows + self.row) * self.wide

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.tall * self.wide


def fill_decoded(decoded: Decoded, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of a decoded tensor."""
    import torch

    one_thread()
    if decoded.coding.layout:
        fill_blocks(decoded, start, stop, out, work)
        return
    result = torch.frombuffer(out, dtype=torch_dtype(decoded.dtype))
    for at, end, area in areas(start, stop, columns_of(decoded)):
        target = result[at - start : end - start].view(area.tall, area.wide)
        for band in bands(decoded, area.row, area.tall):
            values = scaled(decoded, band, _numbers_at(decoded, band, work), work)
            above = area.row - (band.matrix * band.rows + band.row)  # rows of the band that were not asked for
            part = values[max(0, above) : above + area.tall, area.column : area.column + area.wide]
            target[max(0, -above) :][: len(part)].copy_(part)


def bands(decoded: Decoded, row: int, tall: int) -> list[Band]:
    """Bands of whole units of rows that cover rows [row, row + tall), none in two matrices; all but the first begin
    where rows of groups do, if these are not too many.
    """
    wide, rows, unit = columns_of(decoded), rows_of(decoded), decoded.coding.unit
    room = (TALL if unit > 1 else BAND) // max(1, wide)
    step = math.lcm(unit, decoded.coding.block[0])
    step = step if step <= room else unit
    high, end, found = max(1, room // step) * step, row + tall, list[Band]()
    while row < end:
        matrix, inside = divmod(row, rows)
        first = inside // unit * unit
        last = min(-(-min(rows, end - matrix * rows) // unit) * unit, rows, (first + high) // step * step)
        found.append(Band(matrix, first, last - first, wide, rows))
        row = matrix * rows + last
    return found


def rows_of(decoded: Decoded) -> int:
    """How many rows each of its matrices has."""
    return decoded.shape[-2] if len(decoded.shape) > 1 else 1


def codes_of(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor:
    """The codes of a band, [tall, wide]: bytes, or the numbers of 8 bits that they are."""
    packing = decoded.coding.packing
    if packing is None:
        return stored(decoded.codes, band.start, band.size, work, "codes").view(band.tall, band.wide)
    if decoded.coding.flat:
        return _flat_codes(decoded, band, work).view(band.tall, band.wide)
    return unpack(words_of(decoded, band, work, "codes"), packing)[: band.tall, : band.wide]


def words_of(decoded: Decoded, band: Band, work: Workspace, use: str) -> torch.Tensor:
    """The rows of words in which the codes of a band lie."""
    first, count, wide = word_rows(decoded, band)
    return stored(decoded.codes, first * wide, count * wide, work, use).view(count, wide)


def word_rows(decoded: Decoded, band: Band) -> tuple[int, int, int]:
    """The rows of words in which the codes of a band lie, counted through the whole tensor: (first, how many, words
    of each).
    """
    packing = decoded.coding.packing
    if packing is None or not packing.down:
        return band.matrix * band.rows + band.row, band.tall, packing.length(band.wide) if packing else band.wide
    first = band.row // packing.fields * packing.words
    return band.matrix * packing.length(band.rows) + first, packing.length(band.tall), band.wide


def _flat_codes(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor:
    """The same where codes run through the whole tensor."""
    packing = decoded.coding.packing
    assert packing
    data, skip = _flat_bytes(decoded, band, work)
    return unpack(data[None], packing)[0][skip:][: band.size]


def _flat_bytes(decoded: Decoded, band: Band, work: Workspace) -> tuple[torch.Tensor, int]:
    """The bytes in which its codes lie, whatever dtype they are stored as, and the codes before the band's first."""
    import torch

    packing, item = decoded.coding.packing, decoded.codes.dtype.bits // 8
    assert packing and packing.word == 8
    first, last = band.start // packing.fields, -(-(band.start + band.size) // packing.fields)
    low, high = first // item, -(-last // item)
    words = stored(decoded.codes, low, high - low, work, "codes").view(torch.uint8)
    return words[first - low * item : last - low * item], band.start - first * packing.fields


def values_of(decoded: Decoded, band: Band, codes: torch.Tensor, work: Workspace) -> torch.Tensor:
    """What `codes` mean where the band is, in float32 of their own. Raises FormatError where one means no number."""
    return scaled(decoded, band, numbers(decoded, codes, work), work)


def scaled(decoded: Decoded, band: Band, values: torch.Tensor, work: Workspace) -> torch.Tensor:
    """The numbers of codes, in place, without the zeros and times the scales of their groups. Raises FormatError."""
    try:
        if (zeros := zeros_of(decoded, band, work)) is not None:
            _grouped(decoded, band, values, zeros).sub_(_shaped(decoded, band, zeros, work))
        scales = scales_of(decoded, band, work)
        _grouped(decoded, band, values, scales).mul_(_shaped(decoded, band, scales, work))
        if (biases := biases_of(decoded, band, work)) is not None:
            if decoded.coding.stepped and _of_scales(decoded):
                values = values.to(torch_dtype(decoded.dtype)).to(values.dtype)
            _grouped(decoded, band, values, biases).add_(_shaped(decoded, band, biases, work))
    except ValueError as error:
        raise broken(decoded, error) from error
    return values.mul_(decoded.coding.after) if decoded.coding.after != 1 else values


def _numbers_at(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor:
    """The numbers of a band's codes: of whole bytes at once, where these hold whole codes."""
    import torch

    packing = decoded.coding.packing
    if packing is None or packing.bits == 8 or not in_bytes(packing):
        return numbers(decoded, codes_of(decoded, band, work), work)
    table = work.last("bytes", decoded, lambda: byte_table(table_of(decoded, work), packing))
    if decoded.coding.flat:
        data, skip = _flat_bytes(decoded, band, work)
        return _looked_up(table, data)[skip:][: band.size].view(band.tall, band.wide)
    words = words_of(decoded, band, work, "codes")
    return _looked_up(table, words.view(-1).view(torch.uint8)).view(len(words), -1)[:, : band.wide].contiguous()


def _looked_up(table: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """The rows of a table that bytes stand for, one after another."""
    import numpy as np
    import torch

    wide = {1: "f4", 2: "f8", 4: "c16"}.get(table.shape[1])
    if wide is None:
        return table[data.to(torch.int64)].flatten()
    rows = table.numpy().view(wide).reshape(-1)
    return torch.from_numpy(np.take(rows, data.numpy(), mode="clip").view("f4"))


def numbers(decoded: Decoded, codes: torch.Tensor, work: Workspace) -> torch.Tensor:
    """The number that each code is, in float32 of its own. Raises FormatError for one that is none."""
    import torch

    kind = decoded.coding.numbers
    if kind == "float":
        return floats_of(decoded, codes)
    if kind == "integer":
        values = codes.to(torch.float32, copy=True).contiguous()
        return values.sub_(decoded.coding.offset) if decoded.coding.offset else values
    table = table_of(decoded, work)
    return torch.index_select(table, 0, codes.reshape(-1).to(torch.int32)).view(codes.shape)


def floats_of(decoded: Decoded, codes: torch.Tensor) -> torch.Tensor:
    """Floats of 8 bits in float32. Those of 4 exponent bits by way of float16, whose exponents are 8 less there."""
    import torch

    if codes.dtype != torch.float8_e4m3fn:
        values = codes.to(torch.float32)
        fine = math.isfinite(float(values.sum()))
    else:
        fine = int((codes.view(torch.uint8) & 127).max()) < 127 if codes.numel() else True
        wide = codes.contiguous().view(torch.int8).to(torch.int16)
        values = wide.bitwise_left_shift_(7).bitwise_and_(~(1 << 14)).view(torch.float16).to(torch.float32).mul_(256)
    if not fine:
        raise broken(decoded, ValueError("a code is NaN or infinite"))
    return values


def table_of(decoded: Decoded, work: Workspace) -> torch.Tensor:
    """The number of each code of up to 8 bits that are packed."""
    import torch

    coding = decoded.coding
    if coding.numbers == "integer" and coding.packing:
        return torch.arange(1 << coding.packing.bits, dtype=torch.float32) - coding.offset
    return torch.tensor(E2M1_CODES) if coding.numbers == "e2m1" else whole(decoded, "table", work)


def by_rows(decoded: Decoded, band: Band, groups: torch.Tensor) -> torch.Tensor:
    """The numbers of groups, row by row of the band, where they are not the same for all rows."""
    tall = decoded.coding.block[0]
    if decoded.coding.flat or tall == 1 or groups.shape[0] == 1:
        return groups
    return groups.repeat_interleave(tall, 0)[band.row % tall :][: band.tall]


def _even(decoded: Decoded, band: Band, groups: torch.Tensor) -> bool:
    """Whether a band is cut into groups of its own, all of one size."""
    tall, wide = decoded.coding.block
    if decoded.coding.flat:
        return not (band.start % wide or band.size % wide)
    rows = groups.shape[0] * tall == band.tall and not band.row % tall
    return rows and decoded.part("index") is None and groups.shape[-1] * wide == band.wide


def _grouped(decoded: Decoded, band: Band, values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Values as they are, or group by group, whichever `_shaped` numbers go with."""
    tall, wide = decoded.coding.block
    if not _even(decoded, band, groups):
        return values
    return values.view(-1, wide) if decoded.coding.flat else values.view(-1, tall, band.wide // wide, wide)


def _shaped(decoded: Decoded, band: Band, groups: torch.Tensor, work: Workspace) -> torch.Tensor:
    if not _even(decoded, band, groups):
        return spread(decoded, band, by_rows(decoded, band, groups), work)
    return groups[:, None] if decoded.coding.flat else groups[:, None, :, None]


def spread(decoded: Decoded, band: Band, groups: torch.Tensor, work: Workspace) -> torch.Tensor:
    """The number of each element's group, or what broadcasts to that; of groups `by_rows`."""
    wide = decoded.coding.block[1]
    if decoded.coding.flat:
        return groups.repeat_interleave(wide)[band.start % wide :][: band.size].view(band.tall, band.wide)
    if decoded.part("index") is not None:
        return groups[:, _index(decoded, groups.shape[1], work)]
    return groups.repeat_interleave(wide, 1)[:, : band.wide] if wide > 1 and groups.shape[1] > 1 else groups


def _index(decoded: Decoded, groups: int, work: Workspace) -> torch.Tensor:
    """The group of each column. Raises ValueError where there is no such group."""
    index = whole(decoded, "index", work)
    if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < groups:
        raise ValueError(f"a column is of group {int(index.max())}, and there are {groups}")
    return index


def group_rows(decoded: Decoded, band: Band) -> tuple[int, int, int]:
    """The rows of groups of its matrix that a band is in, and how many that has: (first, one past the last, all)."""
    tall = decoded.coding.block[0]
    return band.row // tall, -(-(band.row + band.tall) // tall), -(-band.rows // tall)


def scales_of(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor:
    """The scales of the groups in which a band lies, in float32, [rows, columns] or in a row where they are flat.

    All of the tensor's are remembered if they are few. Raises ValueError where one is no number.
    """
    scale = decoded.part("scale")
    assert scale is not None

    def make(first: int, count: int) -> torch.Tensor:
        raw = stored(scale, first, count, work, "scales")
        made = SCALES[decoded.coding.scale](raw, first, decoded.coding, lambda name: whole(decoded, name, work))
        (check_finite if decoded.coding.signed or decoded.coding.scale == "nested" else check_possible)(made)
        return made.clone()

    held = work.tensors("scales", decoded, scale.size * 4, lambda: [make(0, scale.size)])
    if decoded.coding.flat:
        wide = decoded.coding.block[1]
        low, high = band.start // wide, -(-(band.start + band.size) // wide)
        return held[0][low:high] if held else make(low, high - low)
    first, last, rows = group_rows(decoded, band)
    columns = scale.shape[-1] if scale.shape else 1
    low, high = (band.matrix * rows + first) * columns, (band.matrix * rows + last) * columns
    return (held[0][low:high] if held else make(low, high - low)).view(-1, columns)


def zeros_of(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor | None:
    """The zeros of the same groups, in float32; None where nothing is subtracted. Raises ValueError for one that
    programs read in two ways.
    """
    import torch

    zero, packing = decoded.part("zero"), decoded.coding.zero
    if zero is None:
        return None
    first, last, rows = group_rows(decoded, band)
    wide = zero.shape[-1] if zero.shape else 1
    if packing is None:
        return _of_groups(decoded, zero, band, work)
    unit, each = (packing.fields, packing.words) if packing.down else (1, 1)
    begin, all_rows = first // unit * each, packing.length(rows) if packing.down else rows
    end = min(-(-last // unit) * each, all_rows)
    words = stored(zero, (band.matrix * all_rows + begin) * wide, (end - begin) * wide, work, "zeros").view(-1, wide)
    found = unpack(words, packing)[first - first // unit * unit :][: last - first]
    scale = decoded.part("scale")
    found = found if packing.down or scale is None else found[:, : scale.shape[-1]]
    if decoded.coding.step and bool((found == (1 << packing.bits) - 1).any()):
        raise ValueError(f"a stored zero is {(1 << packing.bits) - 1}, which programs read in two ways")
    return found.to(torch.float32) + decoded.coding.step


def biases_of(decoded: Decoded, band: Band, work: Workspace) -> torch.Tensor | None:
    """What is added in the same groups, in float32; None where nothing is. Raises ValueError where one is no number."""
    bias = decoded.part("bias")
    found = _of_groups(decoded, bias, band, work) if bias is not None else None
    if found is not None:
        check_finite(found)
    return found


def _of_groups(decoded: Decoded, part: Tensor, band: Band, work: Workspace) -> torch.Tensor:
    """The numbers of a part that has one for each group, in float32, in rows."""
    import torch

    first, last, rows = group_rows(decoded, band)
    wide = part.shape[-1] if part.shape else 1
    at = (band.matrix * rows + first) * wide
    return stored(part, at, (last - first) * wide, work, "zeros").to(torch.float32).view(-1, wide)


def _of_scales(decoded: Decoded) -> bool:
    """Whether it is decoded to the dtype that its scales are stored in."""
    scale = decoded.part("scale")
    return scale is not None and scale.dtype == decoded.dtype != F32


def whole(decoded: Decoded, name: str, work: Workspace) -> torch.Tensor:
    """A part that is small, as a whole; floats in float32."""
    import torch

    part = decoded.part(name)
    assert part is not None

    def make() -> list[torch.Tensor]:
        found = stored(part, 0, part.size, work, "part")
        return [found.to(torch.float32, copy=True) if found.is_floating_point() else found.clone()]

    held = work.tensors(name, decoded, part.size * 4, make)
    return held[0] if held else make()[0]


def stored(tensor: Tensor, start: int, count: int, work: Workspace, use: str) -> torch.Tensor:
    """Elements [start, start + count), in the workspace's memory for `use`; what they are made of has its own."""
    import torch

    raw = work.buffer(f"decoded {use} {work.depth}", count * tensor.dtype.bits // 8)
    work.fill_under(tensor, start, start + count, raw)
    return torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)) if count else torch.empty(0)
