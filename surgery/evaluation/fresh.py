"""Codes and scales of numbers that are quantised for the first time: elements of a `Fresh`.

Every block is coded from its own elements, whichever elements are asked for, so that the bytes depend on nothing else.
The arithmetic is that of the programs whose files these are, on a CPU, operation for operation: bitsandbytes 0.50.2
for NF4 and for the 8 bits of its scales, transformers 5.23 for FP8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from ..lazy.fresh import Rule
from ..lazy.tables import NF4
from ..lazy.tensor import Constant, Fresh
from .arithmetic import one_thread, torch_dtype
from .losses import watched
from .tiles import areas, columns_of

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace

CHUNK = 1 << 18  # elements that are coded at once, or a block
WIDE = 4096  # columns of a row of blocks that are coded at once, or a block
LEAST = 1e-38  # what bitsandbytes divides by instead of zero
PLACES = 65535  # steps from -1 to 1 in which numbers are looked up on their way to 8 bits


def fill_constant(constant: Constant, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of what is said."""
    item = constant.dtype.bits // 8
    out[:] = constant.data[start * item : stop * item]


def fill_fresh(fresh: Fresh, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of codes, or of scales."""
    import torch

    one_thread()
    result = torch.frombuffer(out, dtype=torch_dtype(fresh.dtype))
    (_fill_blocks if fresh.rule.kind == "fp8" else _fill_flat)(fresh, start, stop, result, work)


def _fill_flat(fresh: Fresh, start: int, stop: int, result: torch.Tensor, work: Workspace) -> None:
    """The same of blocks that run through the whole tensor."""
    rule = fresh.rule
    block = rule.block[1]
    each = block if fresh.scales else rule.packed  # elements behind one of the result
    step = max(1, CHUNK // block) * block
    for at in range(start * each // block * block, min(stop * each, fresh.of.size), step):
        values = _read(fresh, at, min(at + step, fresh.of.size), work)
        made = (_largest if fresh.scales else CODED[rule.kind])(values, rule)
        first = at // each
        low, high = max(start, first), min(stop, first + len(made))
        result[low - start : high - start] = made[low - first : high - first]


def _fill_blocks(fresh: Fresh, start: int, stop: int, result: torch.Tensor, work: Workspace) -> None:
    """The same of blocks of rows and columns, of which there are whole ones alone."""
    tall, wide = fresh.rule.block
    columns = columns_of(fresh.of)
    for at, end, area in areas(start, stop, columns_of(fresh)):
        target = result[at - start : end - start].view(area.tall, area.wide)
        rows = area.row if fresh.scales else area.row // tall
        last = area.row + area.tall if fresh.scales else -(-(area.row + area.tall) // tall)
        for row in range(rows, last):
            values = _read(fresh, row * tall * columns, (row + 1) * tall * columns, work).view(tall, columns)
            for column, part in _parts(values, wide):
                made = _float8(part, tall, wide, scales=fresh.scales)
                if not fresh.scales and not work.depth:
                    work.loss.overflowed += _lost(part, made)
                _place(target, made, area.row, area.column, row * (1 if fresh.scales else tall), column, fresh)


def _place(
    target: torch.Tensor, made: torch.Tensor, row: int, column: int, made_row: int, elements: int, fresh: Fresh
) -> None:
    """Put `made`, whose corner is (made_row, elements) of the tensor, where it lies in `target`, whose corner is (row,
    column).
    """
    made_column = elements // fresh.rule.block[1] if fresh.scales else elements
    up, left = max(row, made_row), max(column, made_column)
    down = min(row + target.shape[0], made_row + made.shape[0])
    right = min(column + target.shape[1], made_column + made.shape[1])
    if up < down and left < right:
        part = made[up - made_row : down - made_row, left - made_column : right - made_column]
        target[up - row : down - row, left - column : right - column] = part


def _parts(values: torch.Tensor, wide: int) -> Iterator[tuple[int, torch.Tensor]]:
    """A row of blocks in parts of whole blocks, each with its first column."""
    step = max(1, WIDE // wide) * wide
    return ((c, values[:, c : c + step]) for c in range(0, values.shape[1], step))


def _read(fresh: Fresh, start: int, stop: int, work: Workspace) -> torch.Tensor:
    """Elements [start, stop) of what is quantised."""
    import torch

    raw = work.buffer(f"fresh {work.depth}", (stop - start) * fresh.of.dtype.bits // 8)
    work.fill_under(fresh.of, start, stop, raw)
    values = torch.frombuffer(raw, dtype=torch_dtype(fresh.of.dtype))
    if not work.depth:
        watched(values, work.loss)
    return values


def _blocks(values: torch.Tensor, rule: Rule) -> tuple[torch.Tensor, torch.Tensor]:
    """Whole blocks, and what is left of a last one, in float32."""
    import torch

    block = rule.block[1]
    whole = len(values) // block * block
    numbers = values.to(torch.float32)
    numbers = numbers - rule.shift if rule.kind == "dynamic" else numbers
    return numbers[:whole].view(-1, block), numbers[whole:]


def _largest(values: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The largest magnitude of each block."""
    import torch

    whole, rest = _blocks(values, rule)
    found = whole.abs().amax(1)
    if not len(rest):
        return found
    last = rest.abs().amax()
    return torch.cat([found, (last.clamp_(min=LEAST) if rule.kind == "nf4" else last)[None]])


def _nf4(values: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Two codes in a byte, the first in the high half: how many midpoints lie below what each number is of its
    block's largest. A short last block is divided, others are multiplied by the reciprocal.
    """
    import torch

    whole, rest = _blocks(values, rule)
    shares = (whole * (1.0 / whole.abs().amax(1, keepdim=True).clamp_(min=LEAST))).view(-1)
    if len(rest):
        shares = torch.cat([shares, rest / rest.abs().amax().clamp_(min=LEAST)])
    if len(shares) % 2:
        shares = torch.nn.functional.pad(shares, (0, 1))
    table = torch.tensor(NF4)
    codes = torch.bucketize(shares.clamp_(-1, 1), (table[:-1] + table[1:]) / 2, out_int32=True).to(torch.uint8)
    return (codes[::2] << 4) | codes[1::2]


def _dynamic(values: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Codes of 8 bits by way of one of 65536 places; 0 in a block of zeros."""
    import torch

    found = []
    for numbers in _blocks(values, rule):
        numbers = numbers.view(-1, rule.block[1]) if len(numbers) and numbers.dim() > 1 else numbers.view(1, -1)
        if not numbers.numel():
            continue
        most = numbers.abs().amax(1, keepdim=True)
        shares = (numbers * (1.0 / most.where(most > 0, 1))).nan_to_num_(0, 1, -1).clamp_(-1, 1)
        places = (((shares + 1) * 0.5).double() * PLACES + 0.5).float().to(torch.int32)  # rounded once
        found.append(_places()[places].where(most > 0, 0).view(-1))
    return torch.cat(found)


def dynamic_map() -> torch.Tensor:
    """The 256 numbers of bitsandbytes' dynamic type, ascending: for each power of ten a row of midpoints, each row
    twice as long as the one below it, both signs, with 0 and 1.
    """
    import torch

    numbers = [torch.tensor([0.0, 1.0])]
    for power in range(7):
        edges = torch.linspace(0.1, 1, 2**power + 1, dtype=torch.float32)
        middles = 10.0 ** (power - 6) * ((edges[:-1] + edges[1:]) / 2)
        numbers += [middles, -middles]
    return torch.cat(numbers).sort().values


@cache
def _places() -> torch.Tensor:
    """The code that is nearest to each place."""
    import torch

    table = dynamic_map()
    places = (torch.arange(PLACES + 1, dtype=torch.float64) / PLACES * 2 - 1).float()
    return torch.bucketize(places, (table[:-1] + table[1:]) / 2).to(torch.uint8)


def _float8(values: torch.Tensor, tall: int, wide: int, *, scales: bool) -> torch.Tensor:
    """A row of blocks in float8, or by what each block of those has to be multiplied."""
    import torch

    blocks = values.to(torch.float32).view(tall, -1, wide)
    most = blocks.abs().amax((0, 2))
    factors = torch.where(most > 0, 448.0 / most.where(most > 0, 1), 1.0)
    if scales:
        return (1.0 / factors)[None]
    return (blocks * factors[:, None]).clamp_(-448, 448).to(torch.float8_e4m3fn).reshape(tall, -1)


def _lost(values: torch.Tensor, codes: torch.Tensor) -> int:
    """How many numbers have the code of NaN: zeros of a block of which 448 divided by the largest is infinite."""
    import torch

    bad = (codes.view(torch.uint8) & 0x7F) == 0x7F
    return int((bad & values.isfinite()).sum()) if bool(bad.any()) else 0


CODED: dict[str, Callable[[torch.Tensor, Rule], torch.Tensor]] = {"nf4": _nf4, "dynamic": _dynamic}
