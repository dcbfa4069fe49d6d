"""Values that a plan looks at, and no others: those of adapters, which are small. A NaN in one spoils the base."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..errors import AdapterError, listed
from ..evaluation.evaluate import nonfinite, workspace_of
from ..evaluation.workspace import DEFAULT_MEMORY
from ..lazy.dtypes import ARITHMETIC
from ..names import natural


def check_finite_adapters(checkpoint: Checkpoint) -> None:
    """Raise AdapterError for NaN and infinity in adapters: one in B makes a whole row of the base NaN."""
    work = workspace_of(DEFAULT_MEMORY)
    try:
        for source in checkpoint.inputs:
            floats = (
                {n: t for n, t in source.tensors.items() if t.dtype in ARITHMETIC} if source.role == "adapter" else {}
            )
            if bad := [n for n, t in floats.items() if nonfinite(t, work)]:
                raise AdapterError(
                    f"NaN or infinity in {len(bad)} adapter tensors",
                    where=[source.path, *listed(sorted(bad, key=natural))],
                    help="the training diverged; merge an earlier state of the adapter",
                )
    finally:
        work.close()
