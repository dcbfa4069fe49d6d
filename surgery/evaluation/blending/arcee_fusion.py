"""Arcee Fusion: the model's elements where they matter most, and the base's elsewhere.

    importance: |model - base| times the divergence of the softmax of the row in the model from that in the base
    taken is what is at least median + 1.5 * (third quartile - first)

Quartiles are of all elements, however many they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from .method import Method, always
from .order import at_ranks

if TYPE_CHECKING:
    import torch

SMALL = 1e-8


def importance(block: Block) -> torch.Tensor:
    """Of each element, in float32."""
    base, model = block.values
    p, q = model.softmax(-1) + SMALL, base.softmax(-1) + SMALL
    return ((model - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)).float()


def measure(scan: Scan) -> list[float]:
    """From which importance on elements are the model's."""
    import torch

    def values() -> Iterator[torch.Tensor]:
        return (importance(block).reshape(-1) for block in scan.blocks())

    if not scan.size:
        return [0.0]
    places = (torch.tensor([0.25, 0.5, 0.75]) * (scan.size - 1)).long().tolist()
    first, median, third = (torch.tensor(one.value) for one in at_ranks(values, places))
    return [float(median + 1.5 * (third - first))]


def rows(block: Block) -> torch.Tensor:
    """The base, and the model where it matters."""
    base, model = block.values
    return base + (model - base) * (importance(block) >= block.facts[0])


METHODS = {
    "arcee_fusion": Method(
        "the model where it matters most, the base elsewhere",
        rows,
        most=1,
        by_rows=always,
        measure=measure,
        facts=lambda numbers, columns: 1,
    )
}
