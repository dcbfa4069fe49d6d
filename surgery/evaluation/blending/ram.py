"""RAM (arXiv 2601.13572): what one model alone changed is kept, what several did is their mean; with `ramplus_tl` the
first is enlarged, the more the more of it is shared.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from .method import Method, facts_of

if TYPE_CHECKING:
    import torch


def _changed(block: Block) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The deltas, where each is one, and how many are."""
    import torch

    deltas = torch.stack(block.deltas(block.numbers["many"]))
    changed = deltas.abs() > block.numbers["epsilon"]
    return deltas, changed, changed.sum(0)


def rows(block: Block) -> torch.Tensor:
    """The base, and what was changed."""
    import torch

    deltas, changed, count = _changed(block)
    held = deltas * changed
    by = torch.tensor(block.facts or [1.0] * len(deltas), dtype=held.dtype).view(-1, *[1] * block.base.dim())
    return block.base + ((held * (count == 1) * by) + held * (count > 1) / count.clamp(min=1)).sum(0)


def measure(scan: Scan) -> list[float]:
    """By what is multiplied what each model alone changed."""
    many, r, alpha = scan.numbers["many"], scan.numbers["r"], scan.numbers["alpha"]
    shared, alone = [0] * many, [0] * many
    for block in scan.blocks():
        _, changed, count = _changed(block)
        for i, one in enumerate(changed):
            shared[i] += int((one & (count > 1)).sum())
            alone[i] += int((one & (count == 1)).sum())
    parts = [a / max(b, scan.numbers["epsilon"]) for a, b in zip(shared, alone, strict=True)]
    return [1 + r * min(max(part, 0.0), alpha) for part in parts]


METHODS = {
    "ram": Method("what one model changed, or the mean of what several did", rows, shared={"epsilon": 1e-5}),
    "ramplus_tl": Method(
        "the same, with what one alone changed enlarged",
        rows,
        shared={"epsilon": 1e-5, "r": 0.1, "alpha": 0.2},
        measure=measure,
        facts=facts_of(),
    ),
}
