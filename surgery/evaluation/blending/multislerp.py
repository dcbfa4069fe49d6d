"""Multi-SLERP: a mean of several models on the sphere: in the plane that touches it at their weighted mean, and back.

All that it makes are sums of the models, so that their products with each other tell by what each is multiplied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from .gram import gram, models, onto_base, product
from .method import Base, Method, facts_of
from .sums import weighted

if TYPE_CHECKING:
    import torch


def measure(scan: Scan) -> list[float]:
    """By what each model is multiplied. Raises ValueError where the weighted mean is zero."""
    many, eps = scan.numbers["many"], scan.numbers["eps"]
    weights = scan.each("weight", many)
    if many == 1:
        return [1.0]
    if scan.numbers["normalize_weights"]:
        weights = [weight / sum(weights) for weight in weights]
    known = gram(scan, models)
    lengths = [math.sqrt(known[i][i]) for i in range(many)]
    units = [[(i == j) / (lengths[i] + eps) for j in range(many)] for i in range(many)]

    def summed(by: list[float], of: list[list[float]]) -> list[float]:
        return [sum(b * one[j] for b, one in zip(by, of, strict=True)) for j in range(many)]

    mean = summed(weights, units)
    length = math.sqrt(max(product(mean, mean, known), 0.0))
    if length < eps:
        if many == 2 or not any(lengths):
            return weights
        raise ValueError("the weighted sum of the models' directions is zero: there is no mean between them")
    mean = [one / length for one in mean]
    flat = [[u - product(unit, mean, known) * m for u, m in zip(unit, mean, strict=True)] for unit in units]
    tangent = summed(weights, flat)
    angle = math.sqrt(max(product(tangent, tangent, known), 0.0)) + eps
    size = sum(a * b for a, b in zip(lengths, weights, strict=True))
    return [size * (m * math.cos(angle) + v * math.sin(angle) / angle) for m, v in zip(mean, tangent, strict=True)]


def rows(block: Block) -> torch.Tensor:
    """The sum by these factors."""
    return onto_base(block, weighted(models(block), block.facts)) if block.numbers["many"] > 1 else block.values[-1]


METHODS = {
    "multislerp": Method(
        "the mean of several models on the sphere",
        rows,
        Base.ALLOWED,
        each={"weight": 1.0},
        shared={"normalize_weights": 1.0, "eps": 1e-8},
        measure=measure,
        facts=facts_of(),
    )
}
