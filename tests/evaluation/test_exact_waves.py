"""A Fourier transform in whole numbers: what it comes to, and that nothing in it is rounded where machines differ."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from surgery.evaluation import exact_waves
from surgery.evaluation.evaluate import load
from surgery.evaluation.exact_waves import ALL, FINE, circle
from surgery.files.safetensors import read_header, tensors_of
from surgery.lazy.tensor import Before, Zeros, add
from surgery.lazy.waves import Waves


@pytest.mark.parametrize("count", [1, 2, 3, 7, 48, 127, 1000, 4096, 11008])
def test_points_of_a_turn_are_rounded_cosines_and_sines(count: int) -> None:
    cos, sin = circle(count)
    turns = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
    for made, wanted in ((cos, turns.cos()), (sin, turns.sin())):
        assert torch.equal(made, made.round())
        assert (made - wanted * 2**FINE).abs().max() <= 0.5 + 1e-5


def test_a_point_is_the_one_of_many_digits() -> None:
    """cos(π / 5) is half of the golden ratio."""
    with localcontext() as context:
        context.prec = 40
        golden = (1 + Decimal(5).sqrt()) / 4
    assert abs(Decimal(exact_waves._around(10)[1][0]) / 2**96 - golden) < Decimal(2) ** -90


@pytest.mark.parametrize("wide", [1, 2, 48, 80, 127, 1024])
def test_sums_of_rows_are_the_transform_s(wide: int) -> None:
    generator = torch.Generator().manual_seed(1)
    spectra = [(torch.randn(3, wide, generator=generator, dtype=torch.float64) * 2**20).round() for _ in range(2)]
    wanted = torch.fft.ifft(torch.complex(*spectra)).real * wide
    made = exact_waves._transformed([one.clone() for one in spectra]) / 2**FINE
    assert (made - wanted).abs().max() <= 2e-6 * wanted.abs().max()


@pytest.mark.parametrize("shape", [(48, 80), (80, 127), (2, 3)])
def test_no_sum_is_too_large_to_be_exact(shape: tuple[int, int], tmp_path: Path) -> None:
    """All numbers at one place are the worst that can be: each step has the largest sum that there is."""
    tall, wide = shape
    numbers = torch.full((300,), 1.0, dtype=torch.float64)
    units = (numbers / 2.0 ** (math.frexp(math.fsum(numbers.tolist()))[1] - ALL)).round()
    assert 2 ** (ALL - 1) <= units.sum() <= 2**ALL
    entries = torch.ones(300, dtype=torch.int64), torch.ones(300, dtype=torch.int64), units
    spectra = exact_waves._spectra(entries, 0, tall, tall, wide)
    made = exact_waves._transformed([one.clone() for one in spectra])
    assert torch.equal(made, made.round()) and made.abs().max() < 2**53
    save_file({"places": torch.full((300,), wide + 1), "values": numbers}, tmp_path / "x.safetensors")
    found = tensors_of(*read_header(str(tmp_path / "x.safetensors")))
    delta = Waves.of(found["places"], found["values"], 1.0, tall, wide)
    zeros = Zeros(found["values"].dtype, shape)
    back = load(Before(zeros.dtype, add(zeros, [delta]), (delta,)))
    assert back.abs().max() <= 1e-5 * load(add(zeros, [delta])).abs().max()


def test_rows_that_are_too_long_a_prime_are_left_to_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_waves, "WIDEST", 100)
    save_file({"places": torch.tensor([5]), "values": torch.ones(1)}, tmp_path / "x.safetensors")
    found = tensors_of(*read_header(str(tmp_path / "x.safetensors")))
    delta = Waves.of(found["places"], found["values"], 1.0, 6, 127)
    zeros = Zeros(found["values"].dtype, (6, 127))
    assert torch.equal(load(Before(zeros.dtype, zeros, (delta,))), torch.zeros(6, 127))
