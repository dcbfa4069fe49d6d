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
from collections.abc import Mapping

from ...errors import series
from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.dtypes import F32
from ...lazy.kron import Kron, kron
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, Zeros, add, concat, made, narrow, permute, reshape
from .constants import PADS
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    rank = target.rank(8)
    _check_built(target, rank)
    return Effect(deltas=krons(target, rank, target.number("alpha", 8) / rank))


def _check_built(target: Target, rank: int) -> None:
    """Raise AdapterError for matrices that PEFT would not have made of this config: alpha / r follows from no shape
    where they are whole, and PEFT begins those anew that it does not find.
    """
    held = _sides(target.parts)
    if held is None:  # which is told where they are used
        return
    config, near = target.adapter.config, int(target.number("decompose_factor", -1))
    kernel = math.prod(target.weight.shape[2:])
    outs, ins = (_factors(size, near) for size in target.weight.shape[:2])
    wanted = ((outs[0], ins[0]), (outs[1], ins[1] * (kernel if _is_flat(target.parts) else 1)))
    apart = (bool(config.get("decompose_both")) and rank < max(wanted[0]) / 2, rank < max(outs[1], ins[1]) / 2)
    for name, side, size, factored in zip(("lokr_w1", "lokr_w2"), held, wanted, apart, strict=True):
        if size != side:
            raise target.wrong(f"{name} is {side}, and decompose_factor = {near} makes it {size}", MEND)
        if factored == (name in target.parts):
            ways = ("of two factors", "whole")
            what = f"{name} {side} is {ways[factored]}, and r = {rank} would make it {ways[not factored]}"
            tip = "r, rank_pattern or decompose_both is not this adapter's; the scale depends on it: it is not guessed"
            raise target.wrong(what, tip)
    said = config.get("use_effective_conv2d")
    if apart[1] and kernel > 1 and bool(said) != ("lokr_t2" in target.parts):
        raise target.wrong(f"use_effective_conv2d = {said!r}, and the module has {series(sorted(target.parts))}", MEND)


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


def _factors(dimension: int, near: int) -> tuple[int, int]:
    """The two numbers that PEFT takes a dimension for the product of, `near` the first one or, where that is -1, near
    each other.
    """
    if near > 0 and dimension % near == 0:
        return near, dimension // near
    least, most, limit = 1, dimension, dimension if near == -1 else near
    for one in (n for n in range(2, math.isqrt(dimension) + 1) if dimension % n == 0 and n <= limit):
        least, most = one, dimension // one
    return least, most


def _sides(parts: Mapping[str, Tensor]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Rows and columns of the two matrices, the second one's of its first two axes; None where one is not whole."""
    found = list[tuple[int, int]]()
    for name in ("lokr_w1", "lokr_w2"):
        if name in parts:
            found += [(shape[0], shape[1])] if len(shape := parts[name].shape) > 1 else []
        elif {f"{name}_a", f"{name}_b"} <= parts.keys():
            first = parts[f"{name}_a"].shape
            turned = name == "lokr_w2" and "lokr_t2" in parts
            found.append((first[-1 if turned else 0], parts[f"{name}_b"].shape[-1]))
    return (found[0], found[1]) if len(found) == 2 else None


def _is_flat(parts: Mapping[str, Tensor]) -> bool:
    """Whether a convolution's kernel would be in the second matrix's columns."""
    return "lokr_w2" not in parts and "lokr_t2" not in parts


def span(adapter: Adapter, module: str) -> Shape | None:
    """The product of what the two matrices are; with the kernel where one is of it, and not where that is not told."""
    parts = adapter.lora[module]
    sides = _sides(parts)
    if sides is None or _is_flat(parts):
        return None if sides else (1, 1)
    kernel = parts["lokr_t2" if "lokr_t2" in parts else "lokr_w2"].shape[2:]
    return (sides[0][0] * sides[1][0], sides[0][1] * sides[1][1], *kernel)


METHOD = Method(
    "LOKR",
    "LoKr",
    "the Kronecker product of two small matrices, times alpha / r",
    effect,
    axes={
        "lokr_w1_a": (None, "r"),
        "lokr_w1_b": ("r",),
        "lokr_w2_b": ("r",),
        "lokr_t2": ("r", "r"),
    },
    span=span,
    options=said(
        "r alpha rank_dropout rank_dropout_scale module_dropout use_effective_conv2d decompose_both decompose_factor"
        " init_weights rank_pattern alpha_pattern"
    ),
    conv1d=False,
    kernels=PADS.format("LoKr"),
    layers="nn.Linear, convolutions in 1 and 2 dimensions",
)
