"""GLoRA: W' = W + W * A + B, b' = b + b * D + E + W C.

    glora_A, glora_B: `.Xd` (out, r) and `.Xu` (r, in); `.X` (out, 1); or `.X` (1)
    glora_C: `.Xd` (in, r) and `.Xu` (r, 1), or `.X` (in, 1); glora_D, glora_E: `.X` (out) or (1)
    `.zeros` of whatever shape is what a path that is switched off leaves behind

Source: peft 0.21.2, tuners/glora/layer.py `GloraLinear.merge`.
"""

from __future__ import annotations

from ...lazy.change import Delta
from ...lazy.dense import Dense
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, made, product, reshape
from .constants import ones
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    times, plus = _low_rank(target, "glora_A"), _low_rank(target, "glora_B")
    deltas: list[Delta] = [Hadamard((times,), target.matrix, 1.0)] if times else []
    return Effect(deltas=(*deltas, plus) if plus else tuple(deltas), bias=_on_bias(target))


def _low_rank(target: Target, path: str) -> LowRank | None:
    """What a path of the weight's shape comes to; None where it is switched off."""
    out, wide = target.weight.shape
    if f"{path}.Xd" in target.parts:
        left = target.part(f"{path}.Xd", out, None)
        return LowRank(left, target.part(f"{path}.Xu", left.shape[1], wide), 1.0)
    if f"{path}.X" not in target.parts:
        return None
    value = target.part(f"{path}.X")
    if value.shape == (1,):
        return LowRank(ones(out, 1), _spread(value, wide), 1.0)
    return LowRank(target.part(f"{path}.X", out, 1), ones(1, wide), 1.0)


def _on_bias(target: Target) -> tuple[Delta, ...]:
    out, wide = target.weight.shape
    found: list[Delta] = []
    if target.bias and (times := _vector(target, "glora_D", out)):
        found.append(Hadamard((LowRank(ones(1), times, 1.0),), target.bias, 1.0))
    if plus := _vector(target, "glora_E", out):
        found.append(Dense(reshape(plus, (out,)), 1.0))
    if c := _through(target, wide):
        found.append(Dense(reshape(product(target.matrix, c), (out,)), 1.0))
    return tuple(found)


def _vector(target: Target, path: str, out: int) -> Tensor | None:
    """(1, out), a path's numbers for the outputs; None where it is switched off."""
    if f"{path}.X" not in target.parts:
        return None
    value = target.part(f"{path}.X")
    return _spread(value, out) if value.shape == (1,) else reshape(target.part(f"{path}.X", out), (1, out))


def _through(target: Target, wide: int) -> Tensor | None:
    """(in, 1), of which the weight's product is added to the bias."""
    if "glora_C.Xd" in target.parts:
        left = target.part("glora_C.Xd", wide, None)
        return made((wide, 1), "matrix product", [left, target.part("glora_C.Xu", left.shape[1], 1)])
    return target.part("glora_C.X", wide, 1) if "glora_C.X" in target.parts else None


def _spread(value: Tensor, size: int) -> Tensor:
    return made((1, size), "spread", [reshape(value, (1, 1))], times=1.0, plus=0.0, copies=float(size))


METHOD = Method(
    "GLORA",
    "GLoRA",
    "each number times a low rank's and plus another's, biases likewise and plus a product of the weight",
    effect,
    options=said("r config_A_B config_C config_D_E init_weights bias"),
    idle=lambda part: part.endswith(".zeros"),
    conv1d=False,
    layers="nn.Linear",
)
