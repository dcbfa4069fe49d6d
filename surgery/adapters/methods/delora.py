"""DeLoRA: a low rank whose columns and rows have length one, times a strength and the lengths of the base's columns.

    delora_A (r, in), delora_B (out, r), delora_lambda (1), delora_w_norm (in) where it was saved
    W + B diag(lambda / r / (|A's rows| |B's columns|)) A * |W's columns|, no length of A and B below 1e-4

The lengths of W's columns are the saved ones, of the base that it was trained on; else they are taken of this base.
Source: peft 0.21.2, tuners/delora/layer.py `_compute_delta`, `reset_delora_parameters`.
"""

from __future__ import annotations

from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Norms, add, made, unrounded
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    a, b = target.part("delora_A", None, wide), target.part("delora_B", out, None)
    rank = a.shape[0]
    scales = made((rank,), "delora", [a, target.part("delora_B", out, rank), target.part("delora_lambda", 1)])
    left = add(b, [], F32, Gain(scales, None, columns=True))
    saved = "delora_w_norm" in target.parts
    norms = target.part("delora_w_norm", wide) if saved else Norms(unrounded(target.matrix), columns=True)
    right = add(a, [], F32, Gain(norms, None, columns=True))
    return Effect(deltas=(LowRank(left, right, 1.0),))


METHOD = Method(
    "DELORA",
    "DeLoRA",
    "a low rank of unit vectors, times the lengths of the base's columns",
    effect,
    options=said("r delora_lambda module_dropout init_weights rank_pattern lambda_pattern bias"),
    axes={"delora_A": ("r", "in"), "delora_B": ("out", "r")},
    conv1d=False,
    layers="nn.Linear",
)
