"""A user's function of rows, tried on numbers that are drawn: whether it gives what it should, and of each row the same
whatever stands beside it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NotSupported
from ..lazy.dtypes import Dtype
from ..lazy.function import Function
from .arithmetic import TORCH_NAMES, torch_dtype

if TYPE_CHECKING:
    import torch

ROWS = 5
SCALES = (1.0, 3.0, 0.1, 10.0, 0.01)  # of the rows: what is of the whole block is not of a row
CUT = 2


@dataclass
class Refused(Exception):
    """`what` is wrong with a function, `why`, and the `tip` that mends it."""

    what: str
    why: list[str]
    tip: str = ""


def tried(function: Function, dtype: Dtype, columns: int, to: Dtype, wide: int, rows: int) -> None:
    """Nothing, where a function makes of blocks of `columns` in `dtype` as many rows of `wide` in `to`, of each row
    the same. Raises Refused. `rows` is how many the tensor has.
    """
    import torch

    for one in (dtype, to):
        if one.name not in TORCH_NAMES:
            raise NotSupported(f"torch has no dtype for {one}", help="dequantise first: surgery dequantize")
    many, generator = min(rows, ROWS), torch.Generator().manual_seed(0)
    for positive in (False, True):
        block = _drawn(torch_dtype(dtype), columns, generator, positive=positive)[:many]
        whole = _called(function, block, to, wide)
        _check_same(function, whole, _called(function, block, to, wide), "another time something else of the same rows")
        apart = [_called(function, block[i : i + 1], to, wide) for i in range(many)]
        _check_same(function, whole, torch.cat(apart), "of a row apart something else than of the same row in a block")
        cut = [_called(function, part, to, wide) for part in (block[:CUT], block[CUT:]) if len(part)]
        _check_same(function, whole, torch.cat(cut), "of a block of other rows something else than of the same rows")


def _drawn(dtype: torch.dtype, columns: int, generator: torch.Generator, *, positive: bool) -> torch.Tensor:
    import torch

    numbers = torch.randn(ROWS, columns, generator=generator) * torch.tensor(SCALES)[:, None]
    if dtype == torch.bool or not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2 if dtype == torch.bool else 100, (ROWS, columns), generator=generator).to(dtype)
    return (numbers.abs() if positive else numbers).to(dtype)


def _called(function: Function, block: torch.Tensor, to: Dtype, wide: int) -> torch.Tensor:
    """What it makes of a copy of the block, which is as it should be. Raises Refused."""
    import torch

    given = f"given {list(block.shape)} of {block.dtype}"
    try:
        with torch.no_grad():
            found = function.call(block.clone())
    except Exception as error:
        raise Refused(f"the function fails: {type(error).__name__}: {error}", [given]) from error
    if not isinstance(found, torch.Tensor):
        raise Refused(f"the function returns a {type(found).__name__}, and no tensor", [given])
    if found.dim() != 2 or len(found) != len(block):
        raise Refused(f"the function returns {list(found.shape)}: not {len(block)} rows", [given])
    if found.shape[1] != wide:
        raise Refused(
            f"the function returns rows of {found.shape[1]} columns, not of {wide}",
            [given],
            f"say so with columns={found.shape[1]}, where that is meant",
        )
    if found.dtype != torch_dtype(to):
        named = str(found.dtype).removeprefix("torch.")
        raise Refused(
            f"the function returns {named}, not {str(torch_dtype(to)).removeprefix('torch.')}",
            [given],
            f'say so with dtype="{named}", where that is meant, or convert what it returns: .to(rows.dtype)',
        )
    return found.clone()


def _check_same(function: Function, one: torch.Tensor, other: torch.Tensor, how: str) -> None:
    """Raise Refused where they differ by more than another order of the same sums can."""
    import torch

    if one.dtype.is_floating_point or one.dtype.is_complex:
        a, b = (x.to(torch.complex128 if one.dtype.is_complex else torch.float64) for x in (one, other))
        eps = torch.finfo(one.dtype).eps
        near = 8 * eps * one.shape[1] ** 0.5 * a.abs().nan_to_num(0, 0, 0).amax(1, keepdim=True)
        differs = ~((a - b).abs() <= near) & ~(a.isnan() & b.isnan()) & (a != b)
    else:
        differs = one != other
    if bool(differs.any()):
        row = int(differs.any(1).nonzero()[0])
        raise Refused(
            f"the function makes {how}",
            [f"row {row}: {int(differs[row].sum())} of {one.shape[1]} elements differ"],
            "what needs more than a row, such as a mean over all, cannot be done block by block: compute that before,"
            " and let the function use it; what is drawn must follow from the row",
        )
