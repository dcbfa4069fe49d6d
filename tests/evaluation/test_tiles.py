"""What a product's elements are does not hang on where in the tile they lie, on the processor at hand."""

from __future__ import annotations

import pytest
import torch

from surgery.evaluation.arithmetic import exact
from surgery.evaluation.tiles import COLUMNS, ROWS, even

SHIFTS = ((1, 0), (0, 1), (7, 0), (0, 5), (16, 16), (31, 0), (0, 512), (3, 333), (63, 0), (0, 1023))


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left @ even(right))[:, : right.shape[1]]


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("inner", [1, 2, 3, 4, 7, 8, 9, 16, 17, 31, 64, 100, 256])
def test_a_tile_of_it_is_a_slice_of_any_other(kind: torch.dtype, inner: int) -> None:
    drawn = torch.Generator().manual_seed(inner)
    left = torch.randn(2 * ROWS, inner, dtype=kind, generator=drawn)
    right = torch.randn(inner, 2 * COLUMNS, dtype=kind, generator=drawn)
    with exact():
        first = product(left[:ROWS], right[:, :COLUMNS])
        for i, j in SHIFTS:
            made = product(left[i : i + ROWS], right[:, j : j + COLUMNS])
            assert torch.equal(made[: ROWS - i, : COLUMNS - j], first[i:, j:]), (i, j)
    assert torch.allclose(first, left[:ROWS] @ right[:, :COLUMNS], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [*range(1, 50), 64, 100, 257])
def test_so_it_is_of_blocks_of_any_edge(kind: torch.dtype, edge: int) -> None:
    drawn = torch.Generator().manual_seed(edge)
    left, block = (torch.randn(rows, edge, dtype=kind, generator=drawn) for rows in (2 * ROWS, edge))
    with exact():
        first = product(left[:ROWS], block)
        for i in (1, 2, 5, 8, 31, 47):
            assert torch.equal(product(left[i : i + ROWS], block)[: ROWS - i], first[i:]), i
