"""Rules that repeat or place numbers, and those that treat each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def spread(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """`times * input + plus`, each element of the last axis `copies` times."""
    value = inputs[0] * float(numbers["times"]) + float(numbers["plus"])
    return value.repeat_interleave(int(numbers["copies"]), -1)


def blocks_of_ones(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """(rows, columns), in whose column j the j-th run of rows is ones."""
    import torch

    rows, columns = int(numbers["rows"]), int(numbers["columns"])
    return torch.eye(columns, dtype=torch.float64).repeat_interleave(rows // columns, 0)


def tiled(inputs: Sequence[torch.Tensor], numbers: Mapping[str, float | str]) -> torch.Tensor:
    """(rows, columns) of copies of the input, or of the identity of `rows`, side by side and above each other, cut at
    the end.
    """
    import torch

    rows, columns = int(numbers["rows"]), int(numbers["columns"])
    value = inputs[0] if inputs else torch.eye(rows, dtype=torch.float64)
    return value.repeat(-(-rows // value.shape[0]), -(-columns // value.shape[1]))[:rows, :columns]


RULES = {"spread": spread, "blocks of ones": blocks_of_ones, "tiled": tiled}
