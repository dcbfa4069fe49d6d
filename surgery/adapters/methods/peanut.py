"""PEANuT: a small network of which the weight itself is the input: W + scaling * B H(A W).

    peanut_A.weight (r, out), peanut_B.weight (out, r), peanut_encoders.<j>.weight and peanut_decoders.<j>.weight (r, r)
    H: the activation of A W; then of each encoder's product with it; then of each decoder's, plus what the encoder of
    the same depth was given

Source: peft 0.21.2, tuners/peanut/layer.py `_compute_delta_weight`.
"""

from __future__ import annotations

from ...lazy.low_rank import LowRank
from ...lazy.tensor import made, product
from .method import Effect, Method, Target, said

ACTIVATIONS = frozenset(
    """
    gelu gelu_python gelu_new gelu_fast gelu_pytorch_tanh gelu_python_tanh gelu_accurate gelu_10 quick_gelu silu swish
    hardswish linear relu relu2 relu6 leaky_relu mish sigmoid tanh
    """.split()
)


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    a = target.part("peanut_A.weight", None, out)
    rank, act = a.shape[0], str(target.adapter.config.get("act_fn", "relu"))
    if act not in ACTIVATIONS:
        raise target.unsupported(f"PEANuT with act_fn = {act!r} is not supported")
    depth = int(target.number("depth", 0))
    names = [f"peanut_{side}.{j}.weight" for side in ("encoders", "decoders") for j in range(depth)]
    small = [target.part(name, rank, rank) for name in names]
    hidden = made((rank, wide), "peanut", [product(target.matrix, a, left=True), *small], act=act)
    return Effect(deltas=(LowRank(target.part("peanut_B.weight", out, rank), hidden, target.number("scaling", 1.0)),))


METHOD = Method(
    "PEANUT",
    "PEANuT",
    "a small network of which the weight is the input",
    effect,
    axes={"peanut_A.weight": ("r", "out"), "peanut_B.weight": ("out", "r")},
    options=said("r depth act_fn scaling init_weights"),
    conv1d=False,
    layers="nn.Linear",
)
