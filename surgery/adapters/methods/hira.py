"""HiRA: each number of a weight times one more than that of a low rank: W * (1 + B @ A).

    hira_A (r, in), hira_B (out, r); of a convolution (r, in, k...) and (out, r, 1...)
    hira_embedding_A (r, vocabulary), hira_embedding_B (dim, r): W * (1 + (B @ A)^T)

Source: peft 0.21.2, tuners/hira/layer.py `get_delta_weight`.
"""

from __future__ import annotations

from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import permute, reshape
from ..lora import matrix_of
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


METHOD = Method(
    "HIRA",
    "HiRA",
    "each number times one more than that of a low rank",
    effect,
    options=said("r hira_dropout init_weights rank_pattern"),
    layers="nn.Linear, Conv1D, embeddings, convolutions in 1, 2 and 3 dimensions",
)
