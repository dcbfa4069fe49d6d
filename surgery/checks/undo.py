"""Does the undo record give the base back? Only what was restored, and held against its digest, is called
restorable.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from ..errors import SurgeryError
from ..evaluation.arithmetic import exact
from ..evaluation.evaluate import workspace_of
from ..evaluation.replay import replay
from ..evaluation.workspace import DEFAULT_MEMORY
from ..lazy.tensor import Restored, Tensor, has_arithmetic


def unrestored(tensors: Mapping[str, Tensor], *, every: bool) -> dict[str, SurgeryError]:
    """Of what `unmerge` gives, the tensors that do not come back, and why: a block of each is restored, or every
    block.
    """
    wrong, work = dict[str, SurgeryError](), workspace_of(DEFAULT_MEMORY)
    try:
        with exact() if any(map(has_arithmetic, tensors.values())) else nullcontext():
            for name, tensor in tensors.items():
                assert isinstance(tensor, Restored)
                try:
                    replay(tensor, work, every=every)
                except SurgeryError as error:
                    wrong[name] = error
    finally:
        work.close()
    return wrong
