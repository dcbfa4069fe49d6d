"""RoAd: outputs turned in pairs: within each group of g rows, of halves x1 and x2, W' = c * W + s * (-x2, x1).

    road_theta, road_alpha (out / 2), (out) or (2 out) for the variants road_1, road_2 and road_4: c = alpha cos theta,
    s = alpha sin theta; of road_1 the same for both halves; of road_4 the first half of each 2 g is c's, the other s's

The bias is turned as a row of the weight is.
Source: peft 0.21.2, tuners/road/layer.py `_prepare_cols`, `_apply_road`.
"""

from __future__ import annotations

from ...files.peft import Adapter
from ...lazy.change import Delta
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, concat, made, narrow, reshape
from .constants import ones
from .method import Effect, Method, Target, said

SIZES = {"road_1": 0.5, "road_2": 1.0, "road_4": 2.0}  # of theta and alpha, for each output


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out = target.weight.shape[0]
    variant, group = str(target.adapter.config.get("variant", "road_1")), int(target.number("group_size", 64))
    if variant not in SIZES or group < 2 or group % 2 or out % group:
        what = f"variant = {variant!r} with group_size = {group} does not fit {out} outputs"
        raise target.wrong(what, "restore adapter_config.json from the training")
    parts = [target.part(name, int(SIZES[variant] * out)) for name in ("road_theta", "road_alpha")]
    both = made((2, out), "road", parts, group=float(group), variant=variant)
    factors = [reshape(narrow(both, 0, which, 1), (out,)) for which in (0, 1)]
    bias = _turned(target.bias, factors, group) if target.bias else ()
    return Effect(deltas=_turned(target.weight, factors, group), bias=bias)


def _turned(base: Tensor, factors: list[Tensor], group: int) -> tuple[Delta, ...]:
    """(c - 1) * base + s * the base with the halves of each group of rows exchanged."""
    return tuple(
        Hadamard((_along(factor, base),), of, 1.0)
        for factor, of in zip(factors, (base, _exchanged(base, group)), strict=True)
    )


def _along(factor: Tensor, base: Tensor) -> LowRank:
    """A number for each row of a matrix, or each element of a bias."""
    if len(base.shape) == 1:
        return LowRank(ones(1), reshape(factor, (1, factor.size)), 1.0)
    return LowRank(reshape(factor, (factor.size, 1)), ones(1, base.shape[1]), 1.0)


def _exchanged(base: Tensor, group: int) -> Tensor:
    halves = reshape(base, (base.shape[0] // group, 2, group // 2, *base.shape[1:]))
    return reshape(concat([narrow(halves, 1, 1, 1), narrow(halves, 1, 0, 1)], 1), base.shape)


def span(adapter: Adapter, module: str) -> Shape | None:
    """The outputs that the variant has such numbers for."""
    theta, size = adapter.lora[module].get("road_theta"), SIZES.get(adapter.config.get("variant", "road_1"))
    return (int(theta.size / size), 1) if theta is not None and size else None


METHOD = Method(
    "ROAD",
    "RoAd",
    "outputs turned in pairs, with their biases; several adapters come one after another",
    effect,
    options=said("variant group_size init_weights"),
    several="first",
    span=span,
    conv1d=False,
    layers="nn.Linear",
)
