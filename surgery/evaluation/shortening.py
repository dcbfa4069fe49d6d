"""The best product of a smaller rank: QR of both factors, and the singular values of the small matrix between them.

In float64, without the matrix that the product is. Of each pair of singular vectors the left one's largest entry is
positive, so that the same call gives the same factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import AdapterError
from ..lazy.tensor import Tensor
from .arithmetic import exact
from .evaluate import load

if TYPE_CHECKING:
    import torch

# Singular values below that part of the factors' lengths are what rounding to float32 left where terms cancel.
NOISE = 2.0**-23
# From squares of singular values, the largest first, and their sum with those that are not known, the rank.
Choose = Callable[[Sequence[float], float], int]


@dataclass(frozen=True)
class Shortened:
    """`left` (out, rank) and `right` (rank, in) of each matrix; the squares of its singular values, all matrices
    together, of which `rank` were kept.
    """

    pairs: list[tuple[torch.Tensor, torch.Tensor]]
    rank: int
    squares: list[float]


def shortened(a: Tensor, b: Tensor, experts: int, choose: Choose, name: str) -> Shortened | None:
    """The factors of the best approximations of the products that `a` and `b` hold, of a rank that they share; None
    where they have that rank already. Raises AdapterError for NaN, named `name`.

        a  (experts * r, in)        b  (out, r * experts), the expert fastest
    """
    import torch

    with exact():
        whole = [load(factor).flatten(1).double() for factor in (a, b)]
        if not all(bool(torch.isfinite(factor).all()) for factor in whole):
            tip = "the training diverged; take an earlier state of the adapter"
            raise AdapterError("NaN or infinity in the factors of a module", where=[name], help=tip)
        rank = whole[0].shape[0] // experts
        rights = whole[0].view(experts, rank, -1)
        lefts = whole[1].view(-1, rank, experts).permute(2, 0, 1)
        found = [_singular(left, right) for left, right in zip(lefts, rights, strict=True)]
        squares = torch.stack([values.square() for _, values, _ in found]).sum(0).tolist()
        chosen = choose(squares, sum(squares))
        if chosen >= rank:
            return None
        return Shortened([cut(*one, chosen) for one in found], chosen, squares)


def cut(left: torch.Tensor, values: torch.Tensor, right: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first `rank` singular vectors as factors in float32, each with the root of its value."""
    import torch

    u, s, v = left[:, :rank], values[:rank].sqrt(), right[:rank]
    most = u.abs().argmax(0)
    sign = torch.where(u[most, torch.arange(rank)] < 0, -1.0, 1.0).to(u.dtype)
    return (u * (s * sign)).float(), (v * (s * sign)[:, None]).float()


def joined(short: Shortened) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of all its matrices as they are stored: A (experts * rank, in), B (out, rank * experts)."""
    import torch

    b = torch.stack([left for left, _ in short.pairs], 2)
    return torch.cat([right for _, right in short.pairs]), b.reshape(b.shape[0], -1)


def _singular(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The singular vectors and values of `left @ right`; values that are rounding's are 0."""
    import torch

    q, upper = torch.linalg.qr(left)
    p, lower = torch.linalg.qr(right.T)
    u, values, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    values = values * (values > NOISE * left.norm() * right.norm())
    return q @ u, values, v @ p.T
