"""What is left of a sparse delta, made as long again, in the sum of magnitudes, as the whole was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan

if TYPE_CHECKING:
    import torch

LEAST = 1e-7
Kept = Callable[[Block, int, "torch.Tensor"], "torch.Tensor"]  # where a delta is kept, of the model of that number


def sparse_by(kept: Kept, each: int = 1) -> Callable[[Block, Sequence[torch.Tensor]], list[torch.Tensor]]:
    """Deltas with zero where they are not kept, multiplied by the last of the facts of their model, `each` a model."""

    def sparse(block: Block, deltas: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        made = [delta * kept(block, i, delta) for i, delta in enumerate(deltas)]
        return [one if by == 1 else one.mul_(by) for one, by in zip(made, block.facts[each - 1 :: each], strict=True)]

    return sparse


def factors(scan: Scan, kept: Kept, facts: Sequence[float]) -> list[float]:
    """By what each delta is multiplied after it was made sparse: 1 where nothing is rescaled."""
    many = scan.numbers["many"]
    if not scan.numbers["rescale"]:
        return [1.0] * many
    before, after = [0.0] * many, [0.0] * many
    for block in scan.blocks():
        known = Block(block.values, block.at, block.numbers, list(facts))
        for i, delta in enumerate(known.deltas(many)):
            sizes = delta.abs().double()
            before[i] += float(sizes.sum())
            after[i] += float((sizes * kept(known, i, delta)).sum())
    return [
        1.0 if density >= 1 or b < LEAST or a < LEAST else b / a
        for b, a, density in zip(before, after, scan.each("density", many), strict=True)
    ]
