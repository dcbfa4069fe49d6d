"""C³A: blocks of which each row is the row above it, moved by one: W + blocks(c3a_kernel) / in.

    c3a_kernel (out / b, in / b, b); row p, column q of block (m, n): kernel[m, n, (q - p) mod b]

Of two adapters PEFT gives the second the first one's output, on square layers, and fails on others. The sum of both
is what is meant, and what is merged.
Source: peft 0.21.2, tuners/c3a/layer.py `forward`, tuners/c3a/utils.py.
"""

from __future__ import annotations

from ...files.peft import Adapter
from ...lazy.circulant import circulant
from ...lazy.tensor import Shape
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    kernel = target.part("c3a_kernel", None, None, None)
    return Effect(deltas=(circulant(kernel, 1 / target.weight.shape[1]),))


def span(adapter: Adapter, module: str) -> Shape | None:
    """As many blocks of the kernel's length as there are."""
    kernel = adapter.lora[module].get("c3a_kernel")
    if kernel is None or len(kernel.shape) != 3:
        return None
    tall, wide, edge = kernel.shape
    return tall * edge, wide * edge


METHOD = Method(
    "C3A",
    "C³A",
    "circulant blocks",
    effect,
    options=said("block_size block_size_pattern init_weights bias"),
    axes={"c3a_kernel": (None, None, "block_size")},
    span=span,
    together="C3A adapters are added up: PEFT's live model gives each the output of the one before it",
    conv1d=False,
    layers="nn.Linear",
)
