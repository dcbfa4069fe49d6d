"""How many workers a run has: the cores that it may use, as far as the memory does for all."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from handmade import write_adapter, write_phi3

import surgery
from surgery.errors import SurgeryError
from surgery.evaluation.cache import LEAST, MOST, second_level, window_for
from surgery.evaluation.workspace import DEFAULT_MEMORY, LEAST_BUDGET
from surgery.execution import share
from surgery.execution.share import COPIES, FACTORS, TILED, _quotas, need_of, quota_of, shared_out, usable


def test_sixteen_cores_work_by_default() -> None:
    """On what is moved, and on sums of low rank; what is recorded needs blocks."""
    assert shared_out(DEFAULT_MEMORY, COPIES, 16) == shared_out(DEFAULT_MEMORY, TILED, 16) == (16, 6_000_000)
    assert shared_out(DEFAULT_MEMORY, LEAST_BUDGET, 16) == (4, 24_000_000)
    assert shared_out(4 * DEFAULT_MEMORY, LEAST_BUDGET, 16)[0] == 16


@pytest.mark.parametrize("memory", [6_000_000, 20_000_001, 96_000_000, 1 << 33])
@pytest.mark.parametrize("need", [COPIES, TILED, LEAST_BUDGET])
@pytest.mark.parametrize("wanted", [1, 2, 16, 192])
def test_memory_is_never_exceeded(memory: int, need: int, wanted: int) -> None:
    count, each = shared_out(memory, need, wanted)
    assert 1 <= count <= wanted and count * each <= memory
    assert count == 1 or each >= need
    assert count == wanted or (count + 1) * need > memory


@pytest.mark.parametrize(
    ("affinity", "quota", "cores"),
    [(16, math.inf, 16), (16, 2.0, 2), (16, 2.5, 3), (2, 64.0, 2), (16, 0.2, 1), (1, math.inf, 1)],
)
def test_a_core_is_one_that_is_paid_for(affinity: int, quota: float, cores: int) -> None:
    assert usable(affinity, quota) == cores


@pytest.mark.parametrize(
    ("text", "quota"),
    [("max 100000\n", math.inf), ("250000 100000\n", 2.5), ("-1 100000", math.inf), ("50000 100000", 0.5)],
)
def test_quotas_of_both_versions(text: str, quota: float) -> None:
    assert quota_of(text) == quota


def test_the_least_quota_above_a_process_counts(tmp_path: Path) -> None:
    """Version 2: one's own group pays for more than the one that it lies in. Version 1: a group of its own for cpu."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "cpu.max").write_text("300000 100000\n")
    (tmp_path / "a" / "b" / "cpu.max").write_text("max 100000\n")
    told = tmp_path / "told"
    told.write_text("0::/a/b\n")
    assert min(_quotas(tmp_path, told)) == 3
    (tmp_path / "cpu" / "job").mkdir(parents=True)
    (tmp_path / "cpu" / "job" / "cpu.cfs_quota_us").write_text("150000\n")
    (tmp_path / "cpu" / "job" / "cpu.cfs_period_us").write_text("100000\n")
    told.write_text("4:memory:/job\n2:cpu,cpuacct:/job\n")
    assert min(_quotas(tmp_path, told)) == 1.5
    told.write_text("4:memory:/job\n")
    assert [*_quotas(tmp_path, told)] == [] == [*_quotas(tmp_path, tmp_path / "none")]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_phi3(tmp_path / "base", layers=1, hidden=256)


def merged(base: Path, rank: int) -> surgery.Checkpoint:
    path, modules = base.parent / f"r{rank}", {"model.layers.0.self_attn.o_proj": (256, 256)}
    if not path.exists():
        write_adapter(path, modules, rank=rank)
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(path))


def test_what_a_worker_needs_follows_from_the_plan(base: Path) -> None:
    """Copies little; low rank a window and its factor; a record blocks."""
    plain = surgery.open_checkpoint(base)
    assert need_of(surgery.plan(plain)) == COPIES
    assert need_of(surgery.plan(merged(base, 4))) == TILED
    wide = merged(base, 2048)
    assert TILED < need_of(surgery.plan(wide)) == min(LEAST_BUDGET, TILED + 2048 * (256 + 1024) * 4 - FACTORS)
    assert need_of(surgery.plan(surgery.reversible(merged(base, 4), plain))) == LEAST_BUDGET


def test_the_cores_are_the_default(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share, "cores", lambda: 16)
    made = surgery.plan(merged(base, 4))
    assert share.share_of(made, DEFAULT_MEMORY, None, remote=False) == (16, 6_000_000)
    assert share.share_of(made, DEFAULT_MEMORY, 3, remote=False)[0] == 3
    assert share.share_of(made, DEFAULT_MEMORY, None, remote=True)[0] == share.CONNECTIONS
    with pytest.raises(SurgeryError, match="this plan needs --memory 20MB or more"):
        share.share_of(made, LEAST_BUDGET - 1, None, remote=False)


@pytest.mark.parametrize("workers", [1, 16])
@pytest.mark.parametrize("second", [1 << 16, 1 << 20, 1 << 30])
def test_bytes_depend_on_no_cache(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, second: int
) -> None:
    """Nor on how many work."""
    made = surgery.plan(merged(base, 4))
    surgery.execute(made, tmp_path / "want", workers=1)
    monkeypatch.setattr("surgery.evaluation.workspace.window_here", lambda: second // 64)
    surgery.execute(made, tmp_path / "out", workers=workers)
    for path in (tmp_path / "want").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


def test_a_window_is_half_of_the_cache_within_bounds() -> None:
    assert window_for(2 << 20) == 1 << 20
    assert window_for(0) == LEAST and window_for(1 << 30) == MOST
    assert second_level() > 0
