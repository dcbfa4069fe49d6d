"""Products of tensors with each other, over all elements, in float64: angles and lengths are made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan

if TYPE_CHECKING:
    import torch

Gram = list[list[float]]


def gram(scan: Scan, vectors: Callable[[Block], list[torch.Tensor]]) -> Gram:
    """The product of each vector with each, over all blocks."""
    import torch

    total: list[list[float]] = []
    for block in scan.blocks():
        found = [one.reshape(-1).double() for one in vectors(block)]
        total = total or [[0.0] * len(found) for _ in found]
        for i, one in enumerate(found):
            for j in range(i + 1):
                total[i][j] += float(torch.dot(one, found[j]))
    return [[total[max(i, j)][min(i, j)] for j in range(len(total))] for i in range(len(total))]


def product(one: list[float], other: list[float], known: Gram) -> float:
    """The product of two sums of the vectors, told by what each vector is multiplied by."""
    return sum(a * b * known[i][j] for i, a in enumerate(one) if a for j, b in enumerate(other) if b)


def models(block: Block) -> list[torch.Tensor]:
    """The models as they are, or less the base where there is one."""
    return block.deltas(block.numbers["many"]) if block.numbers["based"] else block.values


def onto_base(block: Block, total: torch.Tensor) -> torch.Tensor:
    """A sum of `models`, with the base again."""
    return total + block.base.to(total.dtype) if block.numbers["based"] else total
