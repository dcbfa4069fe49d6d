"""GLoRA: W' = W + W * A + B, b' = b + b * D + E + W C.

    glora_A, glora_B: `.Xd` (out, r) and `.Xu` (r, in); `.X` (out, 1); or `.X` (1)
    glora_C: `.Xd` (in, r) and `.Xu` (r, 1), or `.X` (in, 1); glora_D, glora_E: `.X` (out) or (1)
    `.zeros` of whatever shape is what a path that is switched off leaves behind

Source: peft 0.21.2, tuners/glora/layer.py `GloraLinear.merge`.
"""

from __future__ import annotations

from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.change import Delta
from ...lazy.dense import Dense
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, made, product, reshape
from .constants import ones
from .method import Effect, Method, Target, said

KINDS = {  # of paths
    "config_A_B": ("lora", "vector", "constant"),
    "config_C": ("lora", "vector"),
    "config_D_E": ("constant", "vector"),
}


def effect(target: Target) -> Effect:
    """What it does to the module."""
    _check_paths(target)
    times, plus = _low_rank(target, "glora_A"), _low_rank(target, "glora_B")
    deltas: list[Delta] = [Hadamard((times,), target.matrix, 1.0)] if times else []
    return Effect(deltas=(*deltas, plus) if plus else tuple(deltas), bias=_on_bias(target))


def _check_paths(target: Target) -> None:
    """Raise AdapterError where a path is not what the config says: PEFT would begin it anew, and say nothing."""
    config = target.adapter.config
    for key, letters in (("config_A_B", "AB"), ("config_C", "C"), ("config_D_E", "DE")):
        said = config.get(key, KINDS[key][0])
        if said not in ("none", *(KINDS[key])):
            raise target.unsupported(f"{key} = {said!r} is not known")
        for letter in letters:
            held = _held(target, f"glora_{letter}")
            if key in config and held not in (said, *(["none"] if key != "config_A_B" and target.bias is None else [])):
                raise target.wrong(f"{key} = {said!r}, and glora_{letter} is of {held!r}", MEND)
            if held == "lora":
                target.part(f"glora_{letter}.Xd", None, target.said_rank)


def _held(target: Target, path: str) -> str:
    """What a path is by its tensors, in the config's words."""
    if f"{path}.Xd" in target.parts:
        return "lora"
    if f"{path}.X" not in target.parts:
        return "none"
    return "constant" if target.parts[f"{path}.X"].shape == (1,) else "vector"


def _span(adapter: Adapter, module: str) -> Shape | None:
    """What the longest of its paths tell."""
    parts = adapter.lora[module]
    tall = [
        parts[n].shape[0] for n in ("glora_A.Xd", "glora_A.X", "glora_B.Xd", "glora_B.X", "glora_D.X") if n in parts
    ]
    wide = [parts[n].shape[-1] for n in ("glora_A.Xu", "glora_B.Xu") if n in parts]
    wide += [parts[n].shape[0] for n in ("glora_C.Xd", "glora_C.X") if n in parts]
    return (max(tall, default=1), max(wide, default=1))


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
    span=_span,
    conv1d=False,
    layers="nn.Linear",
)
