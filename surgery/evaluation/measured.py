"""Numbers that are of the whole of several tensors: measured in passes over blocks of constant size, in a constant
order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import SurgeryError
from ..lazy.tensor import Measured
from .arithmetic import one_thread
from .blending import METHODS
from .row_blocks import Scan

if TYPE_CHECKING:
    from .workspace import Workspace


def fill_measured(measured: Measured, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with numbers [start, stop)."""
    import torch

    found = work.last("measured", measured, lambda: _measured(measured, work))
    torch.frombuffer(out, dtype=torch.float64).copy_(torch.tensor(found[start:stop], dtype=torch.float64))


def _measured(measured: Measured, work: Workspace) -> list[float]:
    one_thread()
    method, numbers = METHODS[measured.rule], dict(measured.numbers)
    assert method.measure
    scan = Scan(measured.inputs, numbers, work, method.by_rows(numbers))
    try:
        found = method.measure(scan)
    except (ValueError, ArithmeticError) as error:
        if not scan.broken:
            raise SurgeryError(f"{measured.rule}: {error}", help="try other weights") from error
        found = [0.0] * measured.size
    bad = sum(scan.broken.values())
    work.loss.broken += bad
    work.loss.overflowed += bad  # lengths, angles and thresholds of such a tensor mean nothing
    assert len(found) == measured.size, f"`{measured.rule}` measured {len(found)} numbers, not {measured.size}"
    return found
