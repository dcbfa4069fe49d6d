"""AdapterHub's DoRA, which is not PEFT's: g * (W + s B @ A), and g * b, of g = m / lengths of the rows of W + B @ A.

    lora_A.weight (r, in), lora_B.weight (out, r), m.weight (out, 1); s = alpha / r

Lengths are of B @ A without the scale, and the bias is multiplied, too. Its own merge does neither.
Source: adapters 1.3.0, methods/lora.py `LoRALinear.forward`, `compute_dora_norm`, `compute_dora_deltaw`.
"""

from __future__ import annotations

from ...files.adapters.adapterhub import DORA
from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Norms, Sum, reshape
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    if target.conv1d:
        what = "AdapterHub's DoRA on a Conv1D is not supported: the lengths that it takes there are of columns"
        raise target.unsupported(what, "serve it live, with AdapterHub")
    if len(target.weight.shape) != 2:
        raise target.wrong("AdapterHub has LoRA on linear layers alone")
    out, wide = target.weight.shape
    a, b = target.part("lora_A.weight", None, wide), target.part("lora_B.weight", out, None)
    rank = a.shape[0]
    if b.shape[1] != rank:
        raise target.wrong(f"lora_A is {a.shape}, lora_B {b.shape}")
    magnitude = reshape(target.part("m.weight", out, 1), (out,))
    norms = Norms(Sum(F32, target.weight, (LowRank(b, a, 1.0),)))
    return Effect(
        deltas=(LowRank(b, a, target.number("alpha", float(rank)) / rank),),
        gain=Gain(magnitude, norms),
        bias_gain=Gain(magnitude, norms, columns=True) if target.bias else None,
    )


METHOD = Method(
    DORA,
    "AdapterHub's DoRA",
    "rows of W + s B·A times magnitudes over the lengths of W + B·A, with their biases",
    effect,
    options=said("r alpha rank_pattern alpha_pattern"),
    several="one",
    layers="nn.Linear",
)
