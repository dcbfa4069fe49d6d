"""BEFT: numbers added to the bias: b + beft_bias (1, out).

PEFT builds it on modules without a bias too, whose class has no place for one: such an adapter is not merged.
Source: peft 0.21.2, tuners/beft/layer.py.
"""

from __future__ import annotations

from ...lazy.dense import Dense
from ...lazy.tensor import reshape
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out = target.weight.shape[0]
    return Effect(bias=(Dense(reshape(target.part("beft_bias", 1, out), (out,)), 1.0),))


METHOD = Method(
    "BEFT",
    "BEFT",
    "added to biases, where the base has some",
    effect,
    options=said("init_weights"),
    axes={"beft_bias": (None, "out")},
    conv1d=False,
    layers="nn.Linear",
)
