"""Torch is loaded beside other work: what is known before is what torch says, and copies wait for nothing."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import hashes
from handmade import write_adapter, write_phi3
from hypothesis import given
from hypothesis import strategies as st

import surgery
from surgery.evaluation import loading
from surgery.evaluation.arithmetic import exact
from surgery.evaluation.evaluate import nonfinite, workspace_of
from surgery.execution import crew


@pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere torch is asked")
def test_what_is_read_is_what_torch_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    assert loading._read() == (str(torch.__version__), torch.backends.cpu.get_cpu_capability())
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "avx2")
    assert loading._read() is None


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("avx512vl avx512bw avx512dq fma avx2", "AVX512"),
        ("avx512vl avx512bw fma avx2", "AVX2"),
        ("avx512vl avx512bw avx512dq avx2", "DEFAULT"),
        ("avx2 fma", "AVX2"),
        ("avx2", "DEFAULT"),
        ("", "DEFAULT"),
    ],
)
def test_kinds_of_cpus(flags: str, name: str) -> None:
    assert loading.capability(set(flags.split())) == name


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40))
def test_nan_and_infinity_are_counted_as_torch_does(words: list[int]) -> None:
    """Of any bits: those of two infinities, of NaN and of the largest number among them."""
    special = [
        0x7FF0 << 48,
        0xFFF0 << 48,
        (0x7FF0 << 48) + 1,
        0x7FEF_FFFF_FFFF_FFFF,
        0x7F80_0000_FF80_7C00,
        0x7F7F_FFFF_FBFF_7BFF,
    ]
    raw = torch.tensor([w - (1 << 64 if w >> 63 else 0) for w in words + special], dtype=torch.int64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        values = raw.view(dtype)
        assert _counted(values) == int((~torch.isfinite(values)).sum())


def _counted(values: torch.Tensor) -> int:
    from surgery.lazy.dtypes import DTYPES
    from surgery.lazy.tensor import Constant

    name = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}[values.dtype]
    raw = values.view(torch.uint8).numpy().tobytes()
    work = workspace_of(1 << 20)
    return nonfinite(Constant(DTYPES[name], tuple(values.shape), raw), work)


@pytest.fixture
def merged(tmp_path: Path) -> surgery.Checkpoint:
    """A merge in which most is copied."""
    base = write_phi3(tmp_path / "base", layers=4, hidden=64)
    names = {f"model.layers.{i}.self_attn.o_proj": (64, 64) for i in range(4)}
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(write_adapter(tmp_path / "a", names)))


def test_a_plan_to_compute_loads_no_torch(merged: surgery.Checkpoint, tmp_path: Path) -> None:
    """Nor does the dry run."""
    code = (
        "import sys, surgery\n"
        "c = surgery.merge(surgery.open_checkpoint(sys.argv[1]), surgery.open_adapter(sys.argv[2]))\n"
        "p = surgery.plan(c)\n"
        "assert p.arithmetic and 'torch' not in sys.modules, 'loaded'\n"
        "print(p.identity)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "base"), str(tmp_path / "a")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == surgery.plan(merged).identity  # which torch, that is here, was asked for


@pytest.mark.parametrize("workers", [1, 3])
def test_copies_wait_for_nothing(
    merged: surgery.Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """All that is copied, of all shards, is there before torch is; the bytes are the same."""
    surgery.write(merged, tmp_path / "want", workers=1)
    made = surgery.plan(merged)
    copies = made.nbytes - made.computed_bytes - sum(len(shard.header) for shard in made.shards)
    there, seen, late = threading.Event(), [0], list[str]()

    @contextmanager
    def loaded_at_last() -> Iterator[Callable[[], object]]:
        def ready() -> None:
            late.extend([] if there.wait(20) else ["copies waited"])

        with exact():
            yield ready

    def on_step(step: surgery.Step) -> None:
        seen[0] += step.nbytes if step.kind == "filled" and not there.is_set() else 0
        if seen[0] == copies:
            there.set()

    monkeypatch.setattr(crew, "loaded", there.is_set)
    monkeypatch.setattr(importlib.import_module("surgery.execution.execute"), "exact_at_last", loaded_at_last)
    surgery.execute(made, tmp_path / "out", workers=workers, on_step=on_step)
    assert not late
    assert hashes(tmp_path / "out", without=()) == hashes(tmp_path / "want", without=())


def test_threads_of_torch_are_restored(merged: surgery.Checkpoint, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    surgery.write(merged, tmp_path / "out")
    assert torch.get_num_threads() == before
