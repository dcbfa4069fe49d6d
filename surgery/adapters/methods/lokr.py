"""LoKr: the Kronecker product of two small matrices, W + alpha / r * kron(w1, w2).

    lokr_w1 (o1, i1), or lokr_w1_a (o1, r) @ lokr_w1_b (r, i1)
    lokr_w2 (o2, i2, k...), or lokr_w2_a (o2, r) @ lokr_w2_b (r, i2 * k...)
    an effective convolution's: lokr_t2 (r, r, k...), lokr_w2_a (r, o2), lokr_w2_b (r, i2): Σ_xy t[x, y] a[x] b[y]

PEFT multiplies by alpha / r always, LyCORIS by 1 where both are whole. PEFT's product of a whole `lokr_w2` of three
axes, of a convolution in one dimension, takes w1 (o1, i1) for (1, o1, i1): outputs in the order (o2, o1), and inputs
(i2, i1). It is trained so, and merged so; LyCORIS's is (o1, o2) and (i1, i2) there too.
Source: peft 0.21.2, tuners/lokr/layer.py `get_delta_weight`, `make_weight_cp`, `make_kron`.
"""

from __future__ import annotations

import math

from ...lazy.dtypes import F32
from ...lazy.kron import Kron, kron
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, Zeros, add, concat, made, narrow, permute, reshape
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    rank = target.rank(8)
    _check_whole(target, rank)
    return Effect(deltas=krons(target, rank, target.number("alpha", 8) / rank))


def _check_whole(target: Target, rank: int) -> None:
    """Raise AdapterError where PEFT would have made a matrix of this rank of two others, and it is whole: alpha / r
    follows from no shape then.
    """
    asked = ["lokr_w2", *(["lokr_w1"] if target.adapter.config.get("decompose_both") else [])]
    for name in asked:
        if name in target.parts and rank < max(target.parts[name].shape[:2]) / 2:
            what = f"{name} {target.parts[name].shape} is whole, and r = {rank} would make it of two factors"
            raise target.wrong(
                what, "r or rank_pattern is not this adapter's; the scale depends on it, so it is not guessed"
            )


def krons(target: Target, rank: int | None, scale: float, *, as_lycoris: bool = False) -> tuple[Kron, ...]:
    """What is added, in one product but for PEFT's odd one; of whatever rank, where none is given."""
    left, right = _left(target, rank), _right(target, rank)
    if len(right.shape) == 3 and not as_lycoris:
        return tuple(_odd(left, right, scale, at) for at in range(right.shape[2]))
    return (kron(left, reshape(right, (right.shape[0], math.prod(right.shape[1:]))), scale),)


def both_whole(target: Target) -> bool:
    """Whether neither of the two matrices is made of others."""
    return {"lokr_w1", "lokr_w2"} <= target.parts.keys()


def _left(target: Target, rank: int | None) -> Tensor:
    if "lokr_w1" in target.parts:
        return target.part("lokr_w1", None, None)
    return _multiplied(target.part("lokr_w1_a", None, rank), target.part("lokr_w1_b", rank, None))


def _right(target: Target, rank: int | None) -> Tensor:
    """A matrix, or, where it is whole, with the kernel's axes."""
    kernel = target.weight.shape[2:]
    if "lokr_w2" in target.parts:
        return target.part("lokr_w2", None, None, *kernel)
    if "lokr_t2" not in target.parts:
        return _multiplied(target.part("lokr_w2_a", None, rank), target.part("lokr_w2_b", rank, None))
    flat = (1,) if len(kernel) == 1 else ()  # PEFT stores it with an axis more
    core = target.part("lokr_t2", rank, rank, *kernel, *flat)
    a, b = target.part("lokr_w2_a", core.shape[0], None), target.part("lokr_w2_b", core.shape[1], None)
    return _multiplied(permute(a, (1, 0)), made((core.shape[0], b.shape[1] * math.prod(kernel)), "tucker", [core, b]))


def _multiplied(a: Tensor, b: Tensor) -> Tensor:
    """The product of two thin matrices, which is computed before it is used."""
    return add(Zeros(F32, (a.shape[0], b.shape[1])), [LowRank(a, b, 1.0)], F32)


def _odd(left: Tensor, right: Tensor, scale: float, at: int) -> Kron:
    """What entry `at` of the kernel adds: `right`'s outputs and inputs are the slower ones, the kernel's entries the
    fastest.
    """
    outs, ins, size = right.shape
    zeros = [Zeros(left.dtype, (*left.shape, count)) for count in (at, size - at - 1) if count]
    entry = reshape(left, (*left.shape, 1))
    parts = [*(zeros[:1] if at else []), entry, *(zeros[-1:] if at < size - 1 else [])]
    fast = reshape(concat(parts, 2), (left.shape[0], left.shape[1] * size))
    return kron(reshape(narrow(right, 2, at, 1), (outs, ins)), fast, scale)


METHOD = Method(
    "LOKR",
    "LoKr",
    "the Kronecker product of two small matrices, times alpha / r",
    effect,
    options=said(
        "r alpha rank_dropout rank_dropout_scale module_dropout use_effective_conv2d decompose_both decompose_factor"
        " init_weights rank_pattern alpha_pattern"
    ),
    conv1d=False,
    layers="nn.Linear, convolutions in 1 and 2 dimensions",
)
