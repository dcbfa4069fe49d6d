"""VeRA: two random matrices that all modules share, and two trained vectors of each: W + diag(b) B diag(d) A.

    vera_lambda_d (r), vera_lambda_b (out); shared: vera_A (r, at least in), vera_B (at least out, r)

PVeRA draws its A's outputs in training, and takes their means live: the first halves of a d and an A of 2r rows.
Source: peft 0.21.2, tuners/vera/layer.py `get_delta_weight`, tuners/pvera/layer.py.
"""

from __future__ import annotations

from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.low_rank import LowRank
from ...lazy.tensor import add, narrow
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    d, b = target.part("vera_lambda_d", None), target.part("vera_lambda_b", out)
    a, shared = target.shared("vera_A", d.size, None), target.shared("vera_B", None, d.size)
    if a.shape[1] < wide or shared.shape[0] < out:
        raise target.wrong(f"vera_A {a.shape} and vera_B {shared.shape} are smaller than the module")
    left = add(narrow(shared, 0, 0, out), [], F32, Gain(b, None))
    right = add(narrow(a, 1, 0, wide), [], F32, Gain(d, None))
    return Effect(deltas=(LowRank(left, right, 1.0),))


METHOD = Method(
    "VERA",
    "VeRA",
    "its shared matrices from the file",
    effect,
    options=said("r projection_prng_key save_projection vera_dropout d_initial init_weights bias"),
    partly=lambda part: part in ("vera_A", "vera_B"),
)
