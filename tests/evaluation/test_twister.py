"""What torch's generator on the CPU draws, drawn without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from surgery.evaluation import twister

SEEDS = [0, 1, 42, 2**31 + 5, 2**32 - 1, 2**32 + 3, 2**40 + 9, -1, -7]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("bound", [0.3, 1.0, (6 / 80) ** 0.5, 1e-3])
def test_uniform_numbers_are_the_same_bits(seed: int, bound: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.empty(size).uniform_(-bound, bound, generator=generator) for size in (700, 1301))
    assert np.array_equal(twister.uniform(seed, 0, 700, -bound, bound).astype(np.float32), first.numpy())
    assert np.array_equal(twister.uniform(seed, 700, 1301, -bound, bound).astype(np.float32), second.numpy())


def test_what_is_skipped_may_be_long() -> None:
    generator = torch.Generator().manual_seed(5)
    torch.empty(2_100_000).uniform_(generator=generator)
    wanted = torch.empty(3).uniform_(-2, 2, generator=generator)
    assert np.array_equal(twister.uniform(5, 2_100_000, 3, -2, 2).astype(np.float32), wanted.numpy())


@pytest.mark.parametrize("seed", SEEDS)
def test_kaiming_uniform_is_peft_s(seed: int) -> None:
    from peft.tuners.vera.model import _kaiming_init

    wanted = _kaiming_init((6, 50), generator=torch.Generator().manual_seed(seed)).numpy()
    bound = 3**0.5 * (2**0.5 / 50**0.5)
    assert np.array_equal(twister.uniform(seed, 0, 300, -bound, bound).astype(np.float32).reshape(6, 50), wanted)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [32, 40, 257])
def test_normal_numbers_are_near(seed: int, size: int) -> None:
    wanted = torch.normal(0.0, 0.5, size=(size,), generator=torch.Generator().manual_seed(seed)).numpy()
    assert np.abs(twister.normal(seed, 0.5) - wanted[:16]).max() < 1e-6
