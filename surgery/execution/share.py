"""How many workers a run has, and how much memory each.

The rule: as many workers as there are cores, as far as the memory does for all. A core is one that this process may run
on, and that its control group's quota pays for. What a worker needs follows from the plan: copies need little, sums of
low rank and decoded codes a window that fits the cache, tiles, and the right factor of their delta, which is kept from
window to window; what is recorded, undone or coded anew works in blocks that need more.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import SurgeryError
from ..evaluation.read import PIECE
from ..evaluation.tiles import COLUMNS
from ..evaluation.workspace import LEAST_BUDGET
from ..lazy.dense import Dense
from ..lazy.dtypes import F64
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Decoded, Sum, Tensor, children, has_arithmetic
from ..planning.plan import Plan

CONNECTIONS = 8  # workers where inputs are on the Hub: they wait more than they work
COPIES = 4 * PIECE  # bytes of a worker that moves
TILED = 6_000_000  # bytes of a worker that computes in windows of the cache's size
FACTORS = TILED // 2  # of these, what its right factors may take


def shared_out(memory: int, need: int, wanted: int) -> tuple[int, int]:
    """(workers, bytes of buffers for each): as many as are wanted, and fewer where the memory does not do for all.

    96 MB do for 16 workers that merge a LoRA of rank 16: shared_out(96_000_000, TILED, 16) == (16, 6_000_000).
    """
    count = max(1, min(wanted, memory // need))
    return count, memory // count


def share_of(plan: Plan, memory: int, workers: int | None, *, remote: bool) -> tuple[int, int]:
    """The same for a plan, whose inputs are `remote` or not. Raises SurgeryError for what does not do for one."""
    least = LEAST_BUDGET if plan.arithmetic else COPIES
    if memory < least:
        raise SurgeryError(
            f"{memory} bytes of memory are too few", help=f"this plan needs --memory {-(-least // 10**6)}MB or more"
        )
    wanted = workers if workers is not None else CONNECTIONS if remote else cores()
    if wanted < 1:
        raise SurgeryError(f"{wanted} workers can do nothing", help="pass --workers 1 or more")
    return shared_out(memory, need_of(plan), wanted)


def need_of(plan: Plan) -> int:
    """Bytes that a worker needs to work on this plan at full speed."""
    if not plan.arithmetic:
        return COPIES
    if plan.scratch or any(shard.sidecar for shard in plan.shards):
        return LEAST_BUDGET
    return max((_need(slot.tensor) for shard in plan.shards for slot in shard.slots), default=COPIES)


def _need(tensor: Tensor) -> int:
    """The same for one tensor: of what is known to do with less than the usual."""
    match tensor:
        case Sum(dtype, base, deltas, None) if dtype != F64 and all(isinstance(d, LowRank | Dense) for d in deltas):
            right = sum(_right(d) for d in deltas if isinstance(d, LowRank))
            return min(LEAST_BUDGET, max(_need(base), TILED + max(0, right - FACTORS)))
        case Decoded():
            return TILED
    if not has_arithmetic(tensor):
        return COPIES
    inner = [_need(child) for child in children(tensor) if has_arithmetic(child)]
    return max(inner) if inner else LEAST_BUDGET


def _right(delta: LowRank) -> int:
    """Bytes of a right factor as it is kept: float32, a tile wider than it is."""
    rank, columns = delta.right.shape
    return rank * (columns + COLUMNS) * 4


def cores() -> int:
    """Cores that this process can use."""
    return usable(len(os.sched_getaffinity(0)), min(_quotas(), default=math.inf))


def usable(affinity: int, quota: float) -> int:
    """Cores to work on: a quota of 2.5 lets three work, of which none is idle for long."""
    return max(1, min(affinity, math.ceil(quota) if math.isfinite(quota) else affinity))


def quota_of(text: str) -> float:
    """Cores that a control group pays for, by `cpu.max`, or by quota and period as the older version has them:
    quota_of("250000 100000") == 2.5.
    """
    quota, _, period = text.partition(" ")
    if quota.strip() in ("max", "-1") or not period.strip():
        return math.inf
    return int(quota) / int(period)


def _quotas(root: Path = Path("/sys/fs/cgroup"), told: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """The quota of this process's control group, and of each that it lies in."""
    with suppress(OSError):
        for line in told.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds and "cpu" not in kinds.split(","):
                continue
            for top in (root, root / "unified") if not kinds else (root / "cpu", root / kinds):
                for folder in _up(top, path):
                    with suppress(OSError, ValueError, ZeroDivisionError):
                        yield quota_of(_limit(folder))


def _up(top: Path, path: str) -> Iterator[Path]:
    """The folder of a control group, and those above it."""
    here = top / path.lstrip("/")
    yield here
    while here != top:
        here = here.parent
        yield here


def _limit(folder: Path) -> str:
    """What a control group's files say of its quota."""
    if (one := folder / "cpu.max").exists():
        return one.read_text()
    return f"{(folder / 'cpu.cfs_quota_us').read_text().strip()} {(folder / 'cpu.cfs_period_us').read_text().strip()}"
