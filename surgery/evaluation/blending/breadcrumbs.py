"""The deltas of middle magnitude are kept: Model Breadcrumbs (arXiv 2312.06795), alone or with the majority of signs.

In ascending order of magnitude, equal ones in their order, int(gamma * size) at the end are left out, and as many at
the start as leaves int(density * size).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from . import task
from .magnitude import magnitudes
from .method import Method, facts_of
from .order import at_ranks, place_of_equal
from .rescaled import factors, sparse_by

if TYPE_CHECKING:
    import torch

FACTS = 5  # of each model: the first that is kept, and its place; the first that is not any more, and its; a factor
INF = float("inf")


def measure(scan: Scan) -> list[float]:
    """FACTS of each model."""
    many, facts = scan.numbers["many"], list[float]()
    said = zip(scan.each("density", many), scan.each("gamma", many), strict=True)
    for i, (density, gamma) in enumerate(said):
        facts += [*_limits(scan, i, density, gamma), 1.0]
    facts[FACTS - 1 :: FACTS] = factors(scan, kept, facts)
    return facts


def _limits(scan: Scan, which: int, density: float, gamma: float) -> list[float]:
    if density >= 1 or not scan.size:
        return [-1.0, 0.0, INF, float(scan.size)]
    keep, top = max(0, int(density * scan.size)), int(gamma * scan.size)
    first = max(0, scan.size - keep - top)
    return [*_at(scan, which, first), *_at(scan, which, first + keep)]


def _at(scan: Scan, which: int, rank: int) -> tuple[float, float]:
    """The magnitude at a rank, and the place of the one that has it."""
    if rank >= scan.size:
        return INF, float(scan.size)

    def sizes() -> Iterator[torch.Tensor]:
        return magnitudes(scan, which)

    found, *_ = at_ranks(sizes, [rank])
    return found.value, float(place_of_equal(sizes, found.value, rank - found.below))


def kept(block: Block, which: int, delta: torch.Tensor) -> torch.Tensor:
    """Where the delta is kept."""
    import torch

    low, begin, high, end, _ = block.facts[FACTS * which : FACTS * which + FACTS]
    sizes = delta.abs().float()
    places = torch.arange(block.at, block.at + sizes.numel()).view(sizes.shape)
    above = (sizes > low) | ((sizes == low) & (places >= begin))
    return above & ((sizes < high) | ((sizes == high) & (places < end)))


def _method(what: str, *, by_signs: bool) -> Method:
    return Method(
        what,
        task.rows_of(sparse_by(kept, FACTS), by_signs=by_signs),
        each={**task.EACH, "density": 1.0, "gamma": 0.01},
        shared={**task.SHARED, "rescale": 0.0},
        measure=measure,
        facts=facts_of(FACTS),
    )


METHODS = {
    "breadcrumbs": _method("the deltas that are neither the largest nor the smallest", by_signs=False),
    "breadcrumbs_ties": _method("the same, of each element those of the sign that most of them have", by_signs=True),
}
