"""Karcher: the mean of the models on the sphere, by which they are nearest to it in the sum of squares of angles; found
step by step.

All that it makes are sums of the models, so that their products with each other tell by what each is multiplied.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..row_blocks import Block, Scan
from .gram import Gram, gram, product
from .method import Base, Method, facts_of
from .sums import weighted

if TYPE_CHECKING:
    import torch


def measure(scan: Scan) -> list[float]:
    """By what each model is multiplied."""
    known, many = gram(scan, lambda block: block.values), len(scan.inputs)
    if many == 1:
        return [1.0]
    lengths, tol = [math.sqrt(known[i][i]) for i in range(many)], scan.numbers["tol"]
    units = [[float(i == j) / lengths[i] for j in range(many)] for i in range(many) if lengths[i] > tol]
    if not units:
        return [0.0] * many
    mean = _mean(units, known, int(scan.numbers["max_iter"]), tol)
    return [sum(lengths) / many * one for one in mean]


def _mean(units: list[list[float]], known: Gram, steps: int, tol: float) -> list[float]:
    mean, length = _unit([sum(column) / len(units) for column in zip(*units, strict=True)], known)
    if length < tol:
        mean = units[0]
    for _ in range(steps):
        tangent = [0.0] * len(mean)
        for unit in units:
            cosine = max(-1.0, min(1.0, product(mean, unit, known)))
            if (angle := math.acos(cosine)) >= tol:
                by = angle / math.sin(angle) / len(units)
                tangent = [v + by * (u - cosine * m) for v, u, m in zip(tangent, unit, mean, strict=True)]
        direction, length = _unit(tangent, known)
        if length < tol:
            break
        moved = [math.cos(length) * m + math.sin(length) * d for m, d in zip(mean, direction, strict=True)]
        mean, _ = _unit(moved, known)
    return mean


def _unit(vector: list[float], known: Gram) -> tuple[list[float], float]:
    """The vector at length 1, and its length."""
    length = math.sqrt(max(product(vector, vector, known), 0.0))
    return ([one / length for one in vector] if length else vector), length


def rows(block: Block) -> torch.Tensor:
    """The sum by these factors."""
    return weighted(block.values, block.facts) if len(block.values) > 1 else block.values[0]


METHODS = {
    "karcher": Method(
        "the mean of the models on the sphere, by angles",
        rows,
        Base.NONE,
        shared={"max_iter": 10.0, "tol": 1e-5},
        measure=measure,
        facts=facts_of(),
    )
}
