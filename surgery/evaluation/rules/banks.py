"""Rules for adapters whose factors are made of shared numbers: rows of a bank that are mixed, numbers at places, sums
of fixed matrices, matrices that were not saved, since a seed tells them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..twister import uniform

if TYPE_CHECKING:
    import torch

Numbers = Mapping[str, float | str]


def mixed(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(…, length) from logits (…, n) and a bank (n, length): the rows of the `few` largest, by their softmax."""
    logits, bank = inputs
    largest, places = logits.topk(int(numbers["few"]), dim=-1)
    return (largest.softmax(-1)[..., None] * bank[places]).sum(-2)


def mixed_few(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(…, length) from the places (…, k) of rows of a bank (n, length), and the weights (…, k - 1) of all but the
    last: the sum of all is 1.
    """
    import torch

    places, weights, bank = inputs
    every = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], -1)
    return (every[..., None] * bank[places]).sum(-2)


def gathered(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """The numbers of a vector at `places`, times `scales`."""
    vector, places, scales = inputs
    return vector[places] * scales


def combined(inputs: Sequence[torch.Tensor], numbers: Numbers) -> torch.Tensor:
    """(r, in): the sum of matrices (u, r, r) times numbers (u), times a matrix (r, in)."""
    import torch

    weights, matrices, a = inputs
    return torch.einsum("u,urs->rs", weights, matrices) @ a


def torch_uniform(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """(rows, columns) of numbers of torch's `uniform_(-bound, bound)` on the CPU, from `seed`, after `skip` others."""
    import torch

    rows, columns, bound = int(numbers["rows"]), int(numbers["columns"]), float(numbers["bound"])
    values = uniform(int(numbers["seed"]), int(numbers["skip"]), rows * columns, -bound, bound)
    return torch.from_numpy(values).view(rows, columns)


RULES = {
    "torch uniform": torch_uniform,
    "mixed": mixed,
    "mixed few": mixed_few,
    "gathered": gathered,
    "combined": combined,
}
