"""What is computed before the shards: in an order in which nothing is read that is not there."""

from __future__ import annotations

from surgery.evaluation.scratch import SCRATCH
from surgery.lazy.dtypes import F32
from surgery.lazy.rowwise import measured
from surgery.lazy.tensor import File, Norms, Stored, Tensor
from surgery.planning.steps import ShardPlan, Slot

FILE, SPARE = (Stored(F32, (4, 4), File(path, 100, 0), 0) for path in ("a", SCRATCH))


def test_what_is_measured_of_files_alone_is_one_part() -> None:
    """And what reads a number of the scratch file comes after it, by itself."""
    one, other, late = (measured(2, "slerp", [of, FILE], {"t": t}) for of, t in ((FILE, 0), (FILE, 1), (SPARE, 1)))
    tensors: list[Tensor] = [one, other, Norms(FILE), Norms(SPARE), one, late, other]
    shard = ShardPlan("scratch", b"", tuple(Slot(str(i), tensor, 8 * i) for i, tensor in enumerate(tensors)), 99)
    assert [[slot.name for slot in part.slots] for part in shard.apart()] == [
        ["0", "1"],
        ["2"],
        ["3"],
        ["4"],
        ["5"],
        ["6"],
    ]
