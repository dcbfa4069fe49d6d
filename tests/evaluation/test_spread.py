"""How a change is spread, judged by torch on whole matrices."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgery
from surgery.evaluation.compare import workspace
from surgery.evaluation.spread import Spread, matrix_of, spread

pytestmark = pytest.mark.usefixtures("one_thread")


def found(folder: Path, before: torch.Tensor, after: torch.Tensor) -> Spread:
    save_file({"before": before.contiguous(), "after": after.contiguous()}, folder / "model.safetensors")
    held = surgery.open_checkpoint(folder / "model.safetensors").tensors
    with workspace() as work:
        return spread(held["before"], held["after"], work)


def participation(delta: torch.Tensor) -> float:
    """The definition, by singular values."""
    squares = torch.linalg.svdvals(delta.double()).square()
    return float(squares.sum() ** 2 / squares.square().sum())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(300, 200), (40, 7, 30), (1, 300), (300, 1), (5,)])
def test_counts_and_norms_are_torchs_own(dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(1)
    before = torch.randn(shape).to(dtype)
    after = torch.where(torch.rand(shape) < 0.4, before * 1.25, before)
    after.view(-1)[0] = 7
    one, x, y = found(tmp_path, before, after), before.double(), after.double()
    assert (one.elements, one.differing) == (before.numel(), int((x != y).sum()))
    assert math.isclose(one.change, float((y - x).square().sum()), rel_tol=1e-9)
    assert math.isclose(one.norm, float(x.square().sum()), rel_tol=1e-9)
    assert one.meant is None and one.erased is None


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (64, 700), (700, 64), (1500, 900)])
@pytest.mark.parametrize("rank", [1, 2, 8, 50])
def test_the_rank_of_a_thin_product_is_that_of_its_singular_values(
    shape: tuple[int, int], rank: int, tmp_path: Path
) -> None:
    torch.manual_seed(rank)
    before = torch.randn(shape, dtype=torch.float64)
    delta = torch.randn(shape[0], rank, dtype=torch.float64) @ torch.randn(rank, shape[1], dtype=torch.float64)
    one = found(tmp_path, before, before + delta)
    assert one.rank is not None and math.isclose(one.rank, participation(delta), rel_tol=1e-4)
    assert one.rank <= rank + 1e-6


@pytest.mark.parametrize("shape", [(600, 900), (1000, 500), (300, 200)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_the_rank_of_a_full_change_is_near_that_of_its_singular_values(
    shape: tuple[int, int], decay: float, tmp_path: Path
) -> None:
    """A flat spectrum, which is what rounding leaves, and spectra that fall off."""
    torch.manual_seed(3)
    delta = torch.randn(shape, dtype=torch.float64) * torch.arange(1, shape[1] + 1).double() ** -decay
    one = found(tmp_path, torch.zeros(shape, dtype=torch.float64), delta)
    assert one.rank is not None and math.isclose(one.rank, participation(delta), rel_tol=0.03)


def test_what_has_no_rank(tmp_path: Path) -> None:
    same = torch.randn(300, 300)
    assert found(tmp_path, same, same.clone()).rank is None
    assert found(tmp_path, torch.zeros(5), torch.ones(5)).rank is None


def test_nan_and_infinity_are_counted_and_in_no_norm(tmp_path: Path) -> None:
    before = torch.ones(30, 40)
    after = before.clone()
    after[0, 0], after[1, 1], after[2, 2], before[3, 3], after[3, 3] = math.nan, math.inf, 3, math.nan, math.nan
    one = found(tmp_path, before, after)
    assert (one.differing, one.nonfinite) == (3, 3)
    assert one.change == 4 and one.norm == 30 * 40 - 3
    assert one.rank is not None and math.isclose(one.rank, 1)


@pytest.mark.parametrize(
    ("shape", "matrix"),
    [
        ((3, 4), (3, 4)),
        ((5,), (1, 5)),
        ((), (1, 1)),
        ((8, 20, 30), (160, 30)),
        ((32, 40, 3, 3), (32, 360)),
        ((32, 40, 1, 1), (32, 40)),
        ((32, 4, 3), (32, 12)),
        ((0, 4), (0, 4)),
    ],
)
def test_a_kernel_is_columns(shape: tuple[int, ...], matrix: tuple[int, int]) -> None:
    assert matrix_of(shape) == matrix
