"""SCE (arXiv 2408.07990): of the elements those in which the models differ most, by the squares of what is left of each
model, and by the sign that most have.

`select_topk` is the share of the elements of which the variance is not zero; of equal ones the first are taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..row_blocks import Block, Scan
from .method import Method
from .order import at_ranks, place_of_equal
from .task import agreeing

if TYPE_CHECKING:
    import torch


def measure(scan: Scan) -> list[float]:
    """The least variance that is taken, the place from which its equals are not, and a weight of each model."""
    many = scan.numbers["many"]
    limits = _limits(scan)
    sums = [0.0] * many
    for block in scan.blocks():
        known = Block(block.values, block.at, block.numbers, limits)
        for i, one in enumerate(_selected(known)):
            sums[i] += float(one.double().square().sum())
    means = [one / max(scan.size, 1) for one in sums]
    total = sum(means)
    return [*limits, *([1 / many] * many if abs(total) < 1e-6 else [one / total for one in means])]


def _limits(scan: Scan) -> list[float]:
    share = scan.numbers["select_topk"]
    if share >= 1:
        return [-1.0, 0.0]

    def variances() -> Iterator[torch.Tensor]:
        for block in scan.blocks():
            yield _variance(_deltas(block)).reshape(-1)

    filled = sum(int(one.count_nonzero()) for one in variances())
    keep = int(filled * share)
    if keep <= 0:
        return [float("inf"), 0.0]
    found, *_ = at_ranks(variances, [scan.size - keep])
    of_equals = keep - (scan.size - found.below - found.equal)
    whole = of_equals == found.equal
    return [found.value, float(scan.size if whole else place_of_equal(variances, found.value, of_equals))]


def _deltas(block: Block) -> torch.Tensor:
    import torch

    return torch.stack(block.deltas(block.numbers["many"]))


def _variance(deltas: torch.Tensor) -> torch.Tensor:
    """Of each element over the models, in float32."""
    return deltas.var(0, unbiased=False).abs().float()


def _selected(block: Block) -> torch.Tensor:
    """The deltas with zero where they are not taken."""
    import torch

    deltas, (least, end, *_) = _deltas(block), block.facts
    if least < 0:
        return deltas
    sizes = _variance(deltas)
    places = torch.arange(block.at, block.at + sizes.numel()).view(sizes.shape)
    return deltas * ((sizes > least) | ((sizes == least) & (places < end)))


def rows(block: Block) -> torch.Tensor:
    """The base and what was taken, by weights."""
    import torch

    deltas = _selected(block)
    weights = torch.tensor(block.facts[2:], dtype=deltas.dtype).view(-1, *[1] * block.base.dim())
    left = weights * agreeing(deltas)
    return block.base + (deltas * left).sum(0) / left.sum(0).clamp(min=1e-6)


def facts(numbers: Mapping[str, Any], columns: int) -> int:
    """How many they are."""
    return 2 + int(numbers["many"])


METHODS = {
    "sce": Method(
        "the elements in which the models differ most, by their squares",
        rows,
        shared={"select_topk": 1.0},
        measure=measure,
        facts=facts,
    )
}
