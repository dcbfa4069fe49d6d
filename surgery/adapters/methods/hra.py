"""HRA: reflections of a weight's inputs, one after another: W (I - 2 u1 u1^T) (I - 2 u2 u2^T) …

    hra_u (in, r), or (in * k * k, r) of a convolution: columns of any length, of which the directions count; with
    apply_GS, made orthogonal first, in their order

As one low rank: W - (W U T) U^T, for a small triangular T. Live, a convolution loses its dilation, and takes padding
and stride from their first numbers: a merged weight keeps what config.json says.
Source: peft 0.21.2, tuners/hra/layer.py `get_delta_weight`.
"""

from __future__ import annotations

from ...evaluation.evaluate import load
from ...lazy.low_rank import LowRank
from ...lazy.tensor import made, permute, product
from .constants import DILATES
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    u = target.part("hra_u", target.matrix.shape[1], None)
    if zero := int((~load(u).any(0)).sum()):
        tip = "the adapter file is broken: save it again"
        raise target.wrong(f"{zero} of {u.shape[1]} vectors in hra_u are zero, and point nowhere", tip)
    orthogonal = float(bool(target.adapter.config.get("apply_GS")))
    right = made(u.shape, "reflections", [u], orthogonal=orthogonal)
    left = product(target.matrix, made(u.shape, "reflected", [u], orthogonal=orthogonal))
    return Effect(deltas=(LowRank(left, permute(right, (1, 0)), -1.0),))


METHOD = Method(
    "HRA",
    "HRA",
    "reflections of the inputs, of which several adapters come one after another",
    effect,
    axes={"hra_u": ("in", "r")},
    options=said("r apply_GS init_weights bias"),
    several="first",
    conv1d=False,
    kernels=DILATES.format("HRA"),
    layers="nn.Linear, convolutions in 2 dimensions",
)
