"""What rules make of small tensors: computed whole, in float64, and rounded once to float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy.tensor import Made
from .arithmetic import one_thread, torch_dtype
from .rules import RULES

if TYPE_CHECKING:
    import torch

    from .workspace import Workspace


def fill_made(made: Made, start: int, stop: int, out: memoryview, work: Workspace) -> None:
    """Fill `out` with elements [start, stop) of it."""
    import torch

    value = work.last("made", made, lambda: _value(made, work))
    torch.frombuffer(out, dtype=torch.float32).copy_(value[start:stop])


def _value(made: Made, work: Workspace) -> torch.Tensor:
    """All of it, in float64."""
    import torch

    one_thread()
    inputs = []
    for tensor in made.inputs:
        raw = bytearray(tensor.nbytes)
        work.fill(tensor, 0, tensor.size, memoryview(raw))
        dtype = torch_dtype(tensor.dtype)
        value = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        value = value.view(tensor.shape)
        inputs.append(value.double() if value.is_floating_point() else value.long())
    value = RULES[made.rule](inputs, dict(made.numbers))
    assert value.shape == made.shape, f"`{made.rule}` made {tuple(value.shape)}, not {made.shape}"
    return value.reshape(-1)
