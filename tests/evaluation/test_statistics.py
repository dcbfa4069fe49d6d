"""Statistics of a tensor, against torch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import surgery
from surgery.evaluation.statistics import some_values, statistics

VALUES = {
    "plain": torch.randn(501, 37, generator=torch.Generator().manual_seed(0)) + 1000,
    "half": torch.randn(64, 64).half(),
    "brain": torch.randn(999).bfloat16(),
    "float8": torch.randn(32, 32).to(torch.float8_e4m3fn),
    "integers": torch.arange(-5, 20),
    "flags": torch.tensor([True, False, True]),
    "odd": torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, 2.0], dtype=torch.float64),
    "all nan": torch.full((3,), math.nan),
    "nothing": torch.zeros(0, 4),
    "one": torch.tensor(7.5),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> surgery.Checkpoint:
    path = tmp_path_factory.mktemp("statistics") / "model.safetensors"
    save_file(VALUES, path, {"format": "pt"})
    return surgery.open_checkpoint(path)


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("memory", [96_000_000, 1 << 16])
def test_they_are_those_of_all_values(checkpoint: surgery.Checkpoint, name: str, memory: int) -> None:
    found, value = statistics(checkpoint[name], memory), VALUES[name].double().reshape(-1)
    finite = value[value.isfinite()]
    assert (found.elements, found.zeros) == (value.numel(), int((value == 0).sum()))
    assert (found.nans, found.infinite) == (int(value.isnan().sum()), int(value.isinf().sum()))
    if finite.numel():
        assert (found.least, found.largest) == (float(finite.min()), float(finite.max()))
        assert found.mean == pytest.approx(float(finite.mean()), rel=1e-12)
        assert found.deviation == pytest.approx(float(finite.std(correction=0)), rel=1e-9, abs=1e-300)
    else:
        assert all(map(math.isnan, (found.least, found.largest, found.mean, found.deviation)))


def test_codes_have_none(tmp_path: Path) -> None:
    from handmade import write_tensors

    write_tensors(tmp_path / "model.safetensors", {"codes": ("F4", (4, 4))})
    with pytest.raises(surgery.NotSupported, match="no statistics of F4"):
        statistics(surgery.open_checkpoint(tmp_path / "model.safetensors")["codes"])


def test_values_are_rows(checkpoint: surgery.Checkpoint) -> None:
    assert some_values(checkpoint["integers"]) == list(range(-5, 20))
    assert some_values(checkpoint["float8"])[3] == VALUES["float8"][3].double().tolist()
    assert some_values(checkpoint["one"]) == [7.5]
