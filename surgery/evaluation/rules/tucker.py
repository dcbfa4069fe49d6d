"""A core tensor between two factors, as LyCORIS decomposes kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def tucker(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """Σ_y core[x, y, k...] b[y, i] for a core (r, s, k...) and b (s, in): (r, in * k...)."""
    import torch

    core, b = inputs
    return torch.einsum("xyk,yi->xik", core.flatten(2), b).reshape(core.shape[0], -1)


RULES = {"tucker": tucker}
