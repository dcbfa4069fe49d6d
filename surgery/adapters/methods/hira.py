"""HiRA: each number of a weight times one more than that of a low rank: W * (1 + B @ A).

    hira_A (r, in), hira_B (out, r); of a convolution (r, in, k...) and (out, r, 1...)
    hira_embedding_A (r, vocabulary), hira_embedding_B (dim, r): W * (1 + (B @ A)^T)

Source: peft 0.21.2, tuners/hira/layer.py `get_delta_weight`.
"""

from __future__ import annotations

from ...files.peft import Adapter
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, permute, reshape
from ..lora import matrix_of
from .constants import PADS
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    return Effect(deltas=(Hadamard((_low_rank(target),), target.matrix, 1.0),))


def _low_rank(target: Target) -> LowRank:
    """B @ A, as the weight lies."""
    out, *inner = target.weight.shape
    if "hira_embedding_A" in target.parts:
        a = target.part("hira_embedding_A", None, out)
        b = target.part("hira_embedding_B", inner[0], a.shape[0])
        return LowRank(permute(a, (1, 0)), permute(b, (1, 0)), 1.0)
    a = target.part("hira_A", None, *inner)
    b = target.part("hira_B", out, a.shape[0], *(1 for _ in inner[1:]))
    return LowRank(reshape(b, b.shape[:2]), reshape(a, matrix_of(a.shape)), 1.0)


def span(adapter: Adapter, module: str) -> Shape | None:
    """What the factors make, kernels and all."""
    parts = adapter.lora[module]
    if {"hira_embedding_A", "hira_embedding_B"} <= parts.keys():
        return parts["hira_embedding_A"].shape[-1], parts["hira_embedding_B"].shape[0]
    found = [parts.get(name) for name in ("hira_A", "hira_B")]
    a, b = found
    return (b.shape[0], *a.shape[1:]) if a is not None and b is not None and len(a.shape) > 1 else None


METHOD = Method(
    "HIRA",
    "HiRA",
    "each number times one more than that of a low rank",
    effect,
    axes={
        "hira_A": ("r", "in"),
        "hira_B": ("out", "r"),
        "hira_embedding_A": ("r", "out"),
        "hira_embedding_B": ("in", "r"),
    },
    span=span,
    unpatterned=True,
    options=said("r hira_dropout init_weights rank_pattern"),
    kernels=PADS.format("HiRA"),
    scaled=False,
    layers="nn.Linear, Conv1D, embeddings, convolutions in 1, 2 and 3 dimensions",
)
