"""Sums of tensors by weights, in the order of the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weighted(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """sum(weight * value), in float32 at least: a product of narrower floats is rounded with the sum alone."""
    import torch

    wide = values[0].dtype if values[0].dtype == torch.float64 else torch.float32
    total = values[0].to(wide) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value.to(wide).mul(weight))
    return total
