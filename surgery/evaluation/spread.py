"""How a change lies in a matrix: its size, how many weights it reaches, how many rounding takes back, over how many
directions it spreads. One pass over the tensors, row by row.

The effective rank is the participation ratio of the squared singular values of the change D: (‖D‖²)² / ‖DᵀD‖², all
norms Frobenius'. It is r where r singular values are equal and all others zero, and at most the rank. Where D has up
to `EXACT` columns DᵀD itself is summed; else a sketch (D Ω and Dᵀ D Ω, for `SKETCH` columns Ω of signs) says what it
is but for a rest, which `PROBES` more columns estimate: exact for ranks up to `SKETCH`, within a few percent beyond.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..lazy.dtypes import F32, F64, Dtype
from ..lazy.tensor import Shape, Tensor, in_dtype, reshape
from .arithmetic import exact, torch_dtype
from .compare import comparing
from .tiles import ROWS
from .workspace import Workspace

if TYPE_CHECKING:
    import torch

EXACT, SKETCH, PROBES = 256, 64, 16
WIDEST = 1 << 18  # columns of a matrix of which the effective rank is told
KERNEL = 16  # entries of the last axes that are a kernel's, and columns only together with the axis before them
SMALL = 1e-11  # of the largest eigenvalue of a sketch, what is noise


@dataclass(frozen=True, slots=True)
class Spread:
    """Counts and sums over a tensor of `elements`: `differing` are other numbers afterwards; `meant` were to change,
    and `erased` of these did not, None where nobody knows what was meant. `change` and `norm` are the square norms of
    the change and of what was there before; `rank` is the effective rank of the change, None for vectors and where
    nothing changed. `nonfinite` elements are NaN or infinite on either side, and in none of the norms.
    """

    elements: int
    differing: int = 0
    meant: int | None = None
    erased: int | None = None
    change: float = 0.0
    norm: float = 0.0
    rank: float | None = None
    nonfinite: int = 0


def matrix_of(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a tensor: its last axis is its columns; a kernel's axes, with the one before them."""
    at = len(shape)
    while at > 2 and shape[at - 1] <= KERNEL:
        at -= 1
    columns = math.prod(shape[max(at - 1, 1) :]) if len(shape) > 1 else math.prod(shape)
    return math.prod(shape) // max(columns, 1), columns


def spread(
    before: Tensor, after: Tensor | None, work: Workspace, *, wanted: Tensor | None = None, dtype: Dtype | None = None
) -> Spread:
    """How `after` differs from `before`, both of numbers and of one shape; of what was `wanted`, what is lost.

    Where it is known what was `wanted`, a weight is as it was if it is what was there before, rounded to `dtype`.
    Without `after`, the change is what is `wanted`, in full precision, and what becomes of it where it is rounded to
    `dtype` says which weights are others and which not.
    """
    kinds = [t.dtype for t in (before, after, wanted) if t is not None]
    wide, shape = F64 if F64 in kinds else F32, matrix_of(before.shape)
    given = [t for t in (before, after, wanted) if t is not None]
    sides = [reshape(in_dtype(t, wide), shape) for t in given]
    tally = _Tally(*shape, matrix=len(before.shape) > 1)
    rounded = torch_dtype(dtype) if dtype is not None else None
    with exact(), comparing(sides, work) as ready:
        for w, *others in _rows(ready, work):
            meant = others[-1] if wanted is not None else None
            stored = others[0] if after is not None else others[0].to(rounded)
            kept = w.to(rounded) if meant is not None and rounded is not None else w
            tally.add(w, others[0], kept == stored, meant)
    return tally.found(before.size, known=wanted is not None)


def _rows(tensors: Sequence[Tensor], work: Workspace) -> Iterator[list[torch.Tensor]]:
    """The same elements of each matrix: whole rows, where they are not wider than `WIDEST`. Valid until the next."""
    import torch

    size = tensors[0].size
    columns = min(tensors[0].shape[1], WIDEST)
    few = max(1, WIDEST // columns)  # rows that are looked at as float64 at once
    many = few // ROWS * ROWS or (ROWS if ROWS * columns <= 4 * WIDEST else few)  # rows that are computed at once
    for start in range(0, size, many * columns):
        stop = min(start + many * columns, size)
        values = []
        for i, tensor in enumerate(tensors):
            raw = work.buffer(f"side {i}", (stop - start) * tensor.dtype.bits // 8)
            work.fill(tensor, start, stop, raw)
            values.append(torch.frombuffer(raw, dtype=torch_dtype(tensor.dtype)))
        for at in range(0, stop - start, few * columns):
            yield [value[at : at + few * columns] for value in values]


@dataclass
class _Tally:
    """Sums over the rows that were looked at so far."""

    rows: int
    columns: int
    matrix: bool
    differing: int = 0
    meant: int = 0
    erased: int = 0
    nonfinite: int = 0
    change: float = 0.0
    norm: float = 0.0
    sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, before: torch.Tensor, after: torch.Tensor, kept: torch.Tensor, wanted: torch.Tensor | None) -> None:
        """Some whole rows: before, after the change, whether it is stored as it was, and what was wanted."""
        import torch

        w, a = before.to(torch.float64), after.to(torch.float64)
        same = kept | (a.isnan() & w.isnan())
        self.differing += int((~same).sum())
        if wanted is not None:
            e = wanted.to(torch.float64)
            meant = (e != w) & ~(e.isnan() & w.isnan())
            self.meant += int(meant.sum())
            self.erased += int((meant & same).sum())
        apart = a - w
        odd = ~(torch.isfinite(w) & torch.isfinite(a))
        if bool(odd.any()):
            self.nonfinite += int(odd.sum())
            apart, w = apart.masked_fill(odd, 0), w.masked_fill(odd, 0)
        self.change += float(apart @ apart)
        self.norm += float(w @ w)
        if self.matrix and 1 < self.columns <= WIDEST and bool(apart.any()):
            self._project(apart.view(-1, self.columns))

    def _project(self, change: torch.Tensor) -> None:
        """Add these rows' part of DᵀD, or of its product with columns of signs."""
        import torch

        if self.columns <= EXACT:
            self._sum("gram", change.T @ change)
            return
        if "signs" not in self.sums:
            drawn = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, (self.columns, SKETCH + PROBES), generator=drawn, dtype=torch.int8)
            self.sums["signs"] = signs.to(torch.float64).mul_(2).sub_(1)
        product = change @ self.sums["signs"]
        self._sum("sketch", change.T @ product)
        self._sum("core", product[:, :SKETCH].T @ product[:, :SKETCH])

    def _sum(self, name: str, part: torch.Tensor) -> None:
        self.sums[name] = self.sums[name].add_(part) if name in self.sums else part

    def found(self, elements: int, *, known: bool) -> Spread:
        """What they say together."""
        return Spread(
            elements,
            self.differing,
            self.meant if known else None,
            self.erased if known else None,
            self.change,
            self.norm,
            self._rank(),
            self.nonfinite,
        )

    def _rank(self) -> float | None:
        if not self.change or not (self.sums.keys() & {"gram", "sketch"}):
            return None
        fourth = float(self.sums["gram"].square().sum()) if "gram" in self.sums else _fourth(self.sums)
        most = float(min(self.rows, self.columns))
        return min(max(self.change**2 / fourth, 1.0), most) if fourth > 0 else most


def _fourth(sums: dict[str, torch.Tensor]) -> float:
    """‖DᵀD‖², of what a sketch says of DᵀD, and of the rest as probes that the sketch did not see estimate it."""
    import torch

    sketch, probed = sums["sketch"][:, :SKETCH], sums["sketch"][:, SKETCH:]
    values, vectors = torch.linalg.eigh(sums["core"])
    kept = values > SMALL * values[-1]
    half = (sketch @ vectors[:, kept]) / values[kept].sqrt()  # DᵀD is about half @ half.T
    small = half.T @ half
    probes = sums["signs"][:, SKETCH:]
    told = half @ (half.T @ probes)
    rest = (probed.square().sum() - told.square().sum()) / PROBES
    return float(small.square().sum() + rest)
