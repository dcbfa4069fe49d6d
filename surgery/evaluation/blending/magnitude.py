"""The deltas of largest magnitude are kept: TIES (arXiv 2306.01708), with the majority of signs.

Of a share `density` of the elements, int(density * size) and at least one are kept; of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from . import task
from .method import Method, facts_of
from .order import at_ranks, place_of_equal
from .rescaled import factors, sparse_by

if TYPE_CHECKING:
    import torch

FACTS = 3  # of each model: the least magnitude that is kept, the place from which its equals are not, a factor


def measure(scan: Scan) -> list[float]:
    """FACTS of each model."""
    many = scan.numbers["many"]
    limits = [limit for i, density in enumerate(scan.each("density", many)) for limit in _limits(scan, i, density)]
    facts = [number for i in range(many) for number in (*limits[2 * i : 2 * i + 2], 1.0)]
    facts[2::FACTS] = factors(scan, kept, facts)
    return facts


def _limits(scan: Scan, which: int, density: float) -> tuple[float, float]:
    if density >= 1 or not scan.size:
        return -1.0, 0.0
    if density <= 0:
        return float("inf"), 0.0
    keep = max(1, int(density * scan.size))

    def sizes() -> Iterator[torch.Tensor]:
        return magnitudes(scan, which)

    found, *_ = at_ranks(sizes, [scan.size - keep])
    of_equals = keep - (scan.size - found.below - found.equal)
    whole = of_equals == found.equal
    return found.value, float(scan.size if whole else place_of_equal(sizes, found.value, of_equals))


def magnitudes(scan: Scan, which: int) -> Iterator[torch.Tensor]:
    """The sizes of a model's deltas."""
    for block in scan.blocks((0, which + 1)):
        yield (block.values[1] - block.base).abs().float().reshape(-1)


def kept(block: Block, which: int, delta: torch.Tensor) -> torch.Tensor:
    """Where the delta is kept."""
    import torch

    least, end, _ = block.facts[FACTS * which : FACTS * which + FACTS]
    sizes = delta.abs().float()
    found = sizes > least
    early = min(max(int(end) - block.at, 0), sizes.numel())
    flat, equal = found.reshape(-1), (sizes == least).reshape(-1)
    return torch.cat([flat[:early] | equal[:early], flat[early:]]).view(delta.shape)


METHODS = {
    "ties": Method(
        "the largest deltas, of each element those of the sign that most of them have",
        task.rows_of(sparse_by(kept, FACTS), by_signs=True),
        each={**task.EACH, "density": 1.0},
        shared={**task.SHARED, "normalize": 1.0, "rescale": 0.0},
        measure=measure,
        facts=facts_of(FACTS),
    )
}
