"""Several second factors as one, as AdapterHub's MTL-LoRA weighs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def mixed(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """Σ_j softmax(weights / sharpness)_j b[j] @ between, for b (n, out, r), weights (n), and `between` (r, r), or its
    diagonal (r).
    """
    import torch

    b, weights, between = inputs
    shares = torch.softmax(weights / float(numbers["sharpness"]), 0)
    summed = torch.einsum("n,nor->or", shares, b)
    return summed * between if between.dim() == 1 else summed @ between


RULES = {"mixed by task": mixed}
