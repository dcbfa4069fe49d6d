"""GGUF: weights in blocks of codes, which are read as what they mean wherever they are opened, and never written.

What is told of them here: their layouts, for those who ask what is quantised, and that another dtype may be chosen.
"""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..lazy.tensor import Concat, Decoded, Narrow, Permute, Reshape, Tensor
from .scheme import Quantised, Scheme, Source

WHY = "GGUF is not written: convert_hf_to_gguf.py and llama-quantize of llama.cpp make one of weights in 16 bits"


def layout_of(tensor: Tensor) -> str:
    """How the blocks are called that a tensor is read from; "" where it is not."""
    match tensor:
        case Decoded(coding=coding):
            return coding.layout
        case Reshape(base) | Narrow(base) | Permute(base) | Concat((base, *_)):
            return layout_of(base)
    return ""


def is_gguf(checkpoint: Checkpoint) -> bool:
    """Whether weights of it are read from blocks."""
    return any(map(layout_of, checkpoint.tensors.values()))


def find(source: Source) -> dict[str, Quantised]:
    """Every weight that is read from blocks."""
    return {
        name: Quantised(layout, tensor, (name,))
        for name, tensor in source.tensors.items()
        if (layout := layout_of(tensor))
    }


SCHEME = Scheme("gguf", find, why=WHY, written=False)
