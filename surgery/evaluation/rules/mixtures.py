"""Factors that are made of several: mixed, as AdapterHub's MTL-LoRA weighs them; crossed, as LoHa multiplies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weighed(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """Σ_j softmax(weights / sharpness)_j b[j] @ between, for b (n, out, r), weights (n), and `between` (r, r), or its
    diagonal (r).
    """
    import torch

    b, weights, between = inputs
    shares = torch.softmax(weights / float(numbers["sharpness"]), 0)
    summed = torch.einsum("n,nor->or", shares, b)
    return summed * between if between.dim() == 1 else summed @ between


def crossed(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """Each row of one times each of the other, element by element: (r, n) and (s, n) -> (r * s, n)."""
    one, other = inputs
    return (one[:, None] * other[None]).flatten(0, 1)


RULES = {"weighed": weighed, "crossed": crossed}
