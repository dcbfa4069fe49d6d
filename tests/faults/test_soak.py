"""A soak of some rounds, of what benchmarks/soak.py does for an hour; and that its judges can find something."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calls import built, environment
from disks import mounted
from safetensors.torch import save_file
from soaking.lasting import grown, slope
from soaking.laws import exactly, unit

Soaked = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def preloaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    shim = built(tmp_path_factory.mktemp("shim"))
    if shim is None:
        pytest.skip("no C compiler is here")
    return environment(shim)


@pytest.fixture
def soaked(tmp_path: Path, saved: Callable[..., Path], preloaded: dict[str, str]) -> Soaked:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "phi3").symlink_to(saved("phi3"))

    def run(*options: str) -> dict[str, Any]:
        with mounted(tmp_path / "disk", "24m") as small:
            for name in ("disk/root", "scratch"):
                (tmp_path / name).mkdir()
            places = [str(tmp_path / name) for name in ("disk/root", "scratch", "models")]
            command = [
                sys.executable,
                "-m",
                "soaking",
                *places,
                "--minutes=30",
                *options,
                *(["--small"] if small else []),
            ]
            done = subprocess.run(command, env=preloaded, capture_output=True, text=True, timeout=300, check=False)
        assert done.stdout, done.stderr
        record: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == bool(record["wrong"])
        return record

    return run


def test_some_rounds_break_no_law(soaked: Soaked) -> None:
    record = soaked("--rounds=2", "--warm=0", "--seed=3")
    assert record["wrong"] == []
    assert record["rounds"] == 2 and record["runs"] > 12 and sum(record["faults"].values()) >= 3
    assert record["fds"][0] == record["fds"][1] and record["threads"][0] == record["threads"][1]


def test_a_wrong_byte_is_found(soaked: Soaked) -> None:
    """Undisturbed runs and reruns make the same then: it is the law that knows better."""
    record = soaked("--rounds=1", "--seed=3", "--flip")
    assert any("has other bytes" in line for line in record["wrong"])


def test_what_is_left_behind_is_found(preloaded: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    command = [sys.executable, "-m", "soaking.sabotage", str(tmp_path), str(tmp_path)]
    lines = "".join(f"{json.dumps({'seed': str(i), 'commands': []})}\n" for i in range(50))
    done = subprocess.run(command, env=preloaded, input=lines, capture_output=True, text=True, timeout=100, check=False)
    readings = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(readings) == 50, done.stderr
    found = list(grown(readings, warm=2))
    assert [line.split()[1] for line in found[:2]] == ["descriptors", "threads"]
    assert found[2].startswith("memory grows by")
    still = [readings[0]] * 50
    assert list(grown(still, warm=2)) == []


def test_the_laws_know_a_bit(tmp_path: Path) -> None:
    one = torch.randn(5, 7)
    save_file({"x": one}, tmp_path / "model.safetensors")
    assert list(exactly({"x": one})(tmp_path)) == []
    other = one.clone()
    other.view(torch.int32)[4, 6] ^= 1
    assert list(exactly({"x": other})(tmp_path)) == ["x has other bytes"]
    assert list(exactly({"y": one})(tmp_path)) == ["other names: ['x', 'y']"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_unit_is_the_distance_to_the_next_number(dtype: torch.dtype) -> None:
    values = torch.tensor([1.0, 1.5, 2.0, 0.75, -3.25], dtype=dtype)
    up = torch.nextafter(values.abs(), torch.tensor(1e9 if dtype != torch.float16 else 6e4, dtype=dtype))
    assert torch.equal(unit(values.double(), dtype), up.double() - values.abs().double())


def test_a_slope_is_not_moved_by_what_happens_once() -> None:
    assert slope([5, 5, 5, 900, 900, 900, 900, 900, 900, 900]) == 0
    assert slope([0, 3, 6, 9]) == 3
