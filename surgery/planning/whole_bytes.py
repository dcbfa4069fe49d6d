"""Packed dtypes, of less than a byte, are cut at whole bytes."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..errors import LayoutError
from ..lazy.runs import lower, to_bytes
from ..lazy.tensor import Stored


def check_packed(checkpoint: Checkpoint) -> None:
    """Raise LayoutError for a packed tensor that is cut inside a byte."""
    for name, tensor in checkpoint.tensors.items():
        if tensor.dtype.bits % 8 and not isinstance(tensor, Stored):
            try:
                for piece in lower(tensor):
                    to_bytes(piece)
            except LayoutError as error:
                raise LayoutError(error.what, where=[name], help=error.help) from error
