"""DEFT: a part of the outputs' space is taken out of the weight, and another one put in.

    deft_P (out, r), deft_R (r, in)      W + Q (s R - N^T W), s = alpha / r, or 1 without alpha
    with `para`, no deft_R               W - Q (N^T W)
    relu: Q = P, N = max(P, 0); qr: Q and N are the Q of P's QR

Source: peft 0.21.2, tuners/deft/layer.py `_project`, `_delta_from_factor`.
"""

from __future__ import annotations

from ...lazy.dense import Dense
from ...lazy.dtypes import F32
from ...lazy.low_rank import LowRank
from ...lazy.tensor import add, made, permute, product
from .method import Effect, Method, Target, said

RULES = {"relu": "rectified", "qr": "orthonormal"}


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    p, config = target.part("deft_P", out, None), target.adapter.config
    rank, how = p.shape[1], config.get("decomposition_method", "relu")
    if how not in RULES:
        raise target.unsupported(f"DEFT with decomposition_method = {how!r} is not supported")
    inner = made(p.shape, RULES[how], [p])
    outer = inner if how == "qr" else p
    taken = product(target.matrix, permute(inner, (1, 0)), left=True)
    if bool(config.get("para")) != ("deft_R" not in target.parts):
        raise target.wrong(
            f"para = {config.get('para')!r}, and the module has {' and '.join(sorted(target.parts))}",
            "restore adapter_config.json from the training",
        )
    if config.get("para"):
        return Effect(deltas=(LowRank(outer, taken, -1.0),))
    scale = target.number("alpha") / rank if config.get("alpha") else 1.0  # 0 too
    put = Dense(target.part("deft_R", rank, wide), -scale)
    return Effect(deltas=(LowRank(outer, add(taken, [put], F32), -1.0),))


METHOD = Method(
    "DEFT",
    "DEFT",
    "a part of the outputs' space taken out of the weight, another one put in",
    effect,
    axes={"deft_P": ("out", "r"), "deft_R": ("r", "in")},
    options=said("r decomposition_method init_scale alpha para deft_dropout init_weights bias"),
)
