"""(IA)³: each output of a module times a number, or each input where it is a feed-forward module.

    ia3_l (out, 1)                 W' = l * W, b' = l * b           a convolution's: (1, out, 1...)
    ia3_l (1, in), feed-forward    W' = W * l, b' = b               a convolution's: (1, in, 1...)

Source: peft 0.21.2, tuners/ia3/layer.py `Linear.merge`, `_ConvNd.merge`, tuners/ia3/model.py
`_check_target_module_feedforward`.
"""

from __future__ import annotations

import math

from ...errors import AdapterError, listed, series
from ...files.adapter_config import MEND
from ...files.peft import PREFIX, Adapter
from ...lazy.gain import Gain
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, made, reshape
from ...patterns.matching import fullmatch
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    scales = target.part("ia3_l")
    if target.is_conv:
        return _on_conv(target, scales)
    out, wide = target.weight.shape
    if scales.shape not in ((out, 1), (1, wide)):
        raise target.wrong(f"ia3_l is {scales.shape}, and not ({out}, 1) or (1, {wide})")
    said = target.adapter.config.get("feedforward_modules") is not None
    by_input = _is_feed_forward(target) if said else scales.shape != (out, 1)
    if scales.shape != ((1, wide) if by_input else (out, 1)):
        which = "inputs" if by_input else "outputs"
        what = f"feedforward_modules says that the module's {which} are multiplied, and ia3_l is {scales.shape}"
        raise target.wrong(what, MEND)
    return Effect(gain=Gain(reshape(scales, (wide,)), None, columns=True)) if by_input else _on_outputs(target, scales)


def _on_outputs(target: Target, scales: Tensor) -> Effect:
    rows = reshape(scales, (scales.size,))
    return Effect(gain=Gain(rows, None), bias_gain=Gain(rows, None, columns=True) if target.bias else None)


def _on_conv(target: Target, scales: Tensor) -> Effect:
    """Shapes tell outputs from inputs, but where there are as many of both: then the config does."""
    out, per_group, *kernel = target.weight.shape
    if scales.shape != (1, scales.size, *(1 for _ in kernel)):
        raise target.wrong(f"ia3_l is {scales.shape}, and not one number for each output or input of the convolution")
    by_input = _is_feed_forward(target)
    groups = scales.size // per_group
    if by_input and groups and scales.size == groups * per_group and out % groups == 0:
        return Effect(deltas=(_on_inputs(target, scales, groups, math.prod(kernel)),))
    if not by_input and scales.size == out:
        return _on_outputs(target, scales)
    raise target.wrong(f"ia3_l has {scales.size} numbers for {out} outputs and {per_group} inputs in each group")


def _on_inputs(target: Target, scales: Tensor, groups: int, kernel: int) -> Hadamard:
    """Each group's outputs see its inputs alone: W * (l - 1), of ranks as many as groups."""
    out, per_group = target.weight.shape[:2]
    inputs = reshape(scales, (groups, per_group))
    less = made((groups, per_group * kernel), "spread", [inputs], times=1.0, plus=-1.0, copies=float(kernel))
    which = made((out, groups), "blocks of ones", [], rows=float(out), columns=float(groups))
    return Hadamard((LowRank(which, less, 1.0),), target.matrix, 1.0)


def _is_feed_forward(target: Target) -> bool:
    """Whether the config says so of the module, as PEFT looks it up."""
    modules = target.adapter.config.get("feedforward_modules") or []
    own = target.adapter.names[f"{target.module}.ia3_l"].removeprefix(PREFIX).rpartition(".ia3_l")[0]
    if isinstance(modules, str):
        return fullmatch(modules, own)
    return any(own.endswith(name) for name in modules)


def _check_aims(adapter: Adapter) -> None:
    """Raise AdapterError for feed-forward modules that are no targets: PEFT does not build that."""
    aimed, said = (adapter.config.get(key) for key in ("target_modules", "feedforward_modules"))
    if isinstance(aimed, list) and isinstance(said, list) and (lost := sorted(set(said) - set(aimed))):
        what = f"feedforward_modules has {series(listed(lost, 3))}, and target_modules has not"
        raise AdapterError(what, where=[f"{adapter.path}/adapter_config.json"], help=MEND)


def span(adapter: Adapter, module: str) -> Shape | None:
    """As many outputs, or inputs, as it has numbers; a convolution's shape is not told."""
    scales = adapter.lora[module].get("ia3_l")
    return (scales.shape[0], scales.shape[1]) if scales is not None and len(scales.shape) == 2 else None


METHOD = Method(
    "IA3",
    "(IA)³",
    "outputs times numbers, with their biases; inputs in feed-forward modules",
    effect,
    options=said("feedforward_modules", "init_ia3_weights"),
    several="any",
    check=_check_aims,
    span=span,
    layers="nn.Linear, Conv1D, convolutions in 2 and 3 dimensions",
)
