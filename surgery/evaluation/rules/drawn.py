"""Rules for what adapters did not save, since a seed tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..twister import uniform

if TYPE_CHECKING:
    import torch


def torch_uniform(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """(rows, columns) of numbers of torch's `uniform_(-bound, bound)` on the CPU, from `seed`, after `skip` others."""
    import torch

    rows, columns, bound = int(numbers["rows"]), int(numbers["columns"]), float(numbers["bound"])
    values = uniform(int(numbers["seed"]), int(numbers["skip"]), rows * columns, -bound, bound)
    return torch.from_numpy(values).view(rows, columns)


RULES = {"torch uniform": torch_uniform}
