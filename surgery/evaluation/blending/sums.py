"""Sums of tensors by weights, in the order of the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weighted(values: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """sum(weight * value), in float32 at least: a product of narrower floats is rounded with the sum alone."""
    kind = wide(values[0])
    total = values[0].to(kind) * weights[0]
    for value, weight in zip(values[1:], weights[1:], strict=True):
        total.add_(value.to(kind).mul(weight))
    return total


def wide(value: torch.Tensor) -> torch.dtype:
    """float32, or float64 of float64."""
    import torch

    return torch.float64 if value.dtype == torch.float64 else torch.float32
