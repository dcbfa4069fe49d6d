"""LoHa: the product, element by element, of two low ranks: W + alpha / r * (w1_a @ w1_b) * (w2_a @ w2_b).

    hada_w1_a (out, r), hada_w1_b (r, in), and the same of hada_w2; of a convolution (r, in * k...)
    an effective convolution's: hada_t1 (r, r, k...), hada_w1_a (r, out), hada_w1_b (r, in): Σ_xy t[x, y] a[x] b[y]

Source: peft 0.21.2, tuners/loha/layer.py `get_delta_weight`, `make_weight_cp`.
"""

from __future__ import annotations

import math

from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, made, permute
from .constants import PADS
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    rank = target.rank(8)
    factors = tuple(_factor(target, which, rank) for which in ("1", "2"))
    return Effect(deltas=(Hadamard(factors, None, target.number("alpha", 8) / rank),))


def _factor(target: Target, which: str, rank: int) -> LowRank:
    """One of the two low ranks, as a matrix of the module's."""
    out, wide = target.matrix.shape
    said = target.adapter.config.get("use_effective_conv2d")
    if math.prod(target.weight.shape[2:]) > 1 and bool(said) != (f"hada_t{which}" in target.parts):
        has = "has" if f"hada_t{which}" in target.parts else "has no"
        raise target.wrong(f"use_effective_conv2d = {said!r}, and the module {has} hada_t{which}", MEND)
    if f"hada_t{which}" not in target.parts:
        return LowRank(target.part(f"hada_w{which}_a", out, rank), target.part(f"hada_w{which}_b", rank, wide), 1.0)
    core = target.part(f"hada_t{which}", rank, rank, *(None for _ in target.weight.shape[2:]), *_flat(target))
    a = target.part(f"hada_w{which}_a", rank, out)
    b = target.part(f"hada_w{which}_b", rank, target.weight.shape[1])
    if math.prod(core.shape[2:]) * b.shape[1] != wide:
        raise target.wrong(f"hada_t{which} is {core.shape}, which is not the module's kernel")
    return LowRank(permute(a, (1, 0)), made((rank, wide), "tucker", [core, b]), 1.0)


def _flat(target: Target) -> tuple[int, ...]:
    """PEFT stores the core of a convolution in one dimension with an axis more."""
    return (1,) if len(target.weight.shape) == 3 else ()


def span(adapter: Adapter, module: str) -> Shape | None:
    """What the factors make; of an effective convolution with its kernel."""
    parts = adapter.lora[module]
    a, b, core = (parts.get(name) for name in ("hada_w1_a", "hada_w1_b", "hada_t1"))
    if a is None or b is None or any(len(one.shape) != 2 for one in (a, b)):
        return None
    return (a.shape[0], b.shape[1]) if core is None else (a.shape[1], b.shape[1], *core.shape[2:])


METHOD = Method(
    "LOHA",
    "LoHa",
    "the product of two low ranks, element by element",
    effect,
    span=span,
    options=said("r alpha rank_dropout module_dropout use_effective_conv2d init_weights rank_pattern alpha_pattern"),
    conv1d=False,
    kernels=PADS.format("LoHa"),
    layers="nn.Linear, convolutions in 1 and 2 dimensions",
)
