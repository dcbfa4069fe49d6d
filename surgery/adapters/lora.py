"""LoRA on nn.Linear, Conv1D, nn.Embedding and convolutions: W + scale * B @ A.

    lora_A.weight (r, in), lora_B.weight (out, r), for a weight (out, in); a Conv1D's weight is (in, out), and its
    delta is transposed. lora_embedding_A (r, vocabulary), lora_embedding_B (dim, r), for a weight (vocabulary, dim):
    transposed too. A convolution's lora_A.weight is (r, in, k...), its lora_B.weight (out, r, 1...): the same for
    its weight as (out, in * k...). lora_B.bias (out) is added to the base's bias. scale = lora_alpha / r, or
    lora_alpha / sqrt(r) with use_rslora; r and alpha per module by patterns.

Source: peft 0.21.2, tuners/lora/layer.py `get_delta_weight` of `Linear` and `_ConvNd`, `update_layer`, and
utils/other.py `get_pattern_key`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import AdapterError, NotSupported
from ..files.peft import Adapter
from ..lazy.dense import Dense
from ..lazy.dtypes import ARITHMETIC
from ..lazy.low_rank import LowRank
from ..lazy.tensor import Shape, Tensor, permute, reshape
from ..models.families import is_conv1d
from ..names import compiled
from ..patterns.matching import end_matches
from .dora import MAGNITUDES

_LINEAR, _EMBEDDING = frozenset({"lora_A.weight", "lora_B.weight"}), frozenset({"lora_embedding_A", "lora_embedding_B"})
BIAS = "lora_B.bias"


def check_numbers(adapter: Adapter) -> None:
    """Raise AdapterError unless ranks and alphas are numbers, and patterns regular expressions: the scale depends on
    them.
    """
    config, where, wrong = adapter.config, [f"{adapter.path}/adapter_config.json"], list[str]()
    for key, table in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        values = {key: config.get(key, 8)}
        patterns = config.get(table) or {}
        if isinstance(patterns, dict):
            values |= {f"{table}[{name!r}]": value for name, value in patterns.items()}
            for name in patterns:
                compiled(name)
        else:
            wrong.append(f"{table} = {patterns!r}")
        wrong += [f"{name} = {v!r}" for name, v in values.items() if not _is_number(v, integer=key == "r")]
    if wrong:
        raise AdapterError(
            "the adapter's rank or alpha is not a number",
            where=[*where, *wrong],
            help="say it: --alpha" if adapter.format else "restore the file from the training",
        )


def _is_number(value: Any, *, integer: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, int if integer else int | float):
        return False
    return value > 0 if integer else math.isfinite(value)


def check_factors(adapter: Adapter, module: str, base: str = "") -> tuple[Tensor, Tensor]:
    """The two factors of the module's LoRA: matrices of numbers, or kernels, and of the rank that the config says.

    `base` is said where an error is. Raises AdapterError, NotSupported.
    """
    parts = adapter.lora[module]
    where = [f"{adapter.path}: {adapter.names[f'{module}.{next(iter(parts))}']}", *([base] if base else [])]
    pair = _EMBEDDING if _EMBEDDING & set(parts) else _LINEAR
    if unknown := sorted(set(parts) - pair - {BIAS, *MAGNITUDES}):
        raise NotSupported(f"LoRA with {', '.join(unknown)} is not supported", where=where, help="merge it with PEFT")
    if missing := sorted(pair - set(parts)):
        raise AdapterError(
            f"the module has no {missing[0]}", where=where, help="the adapter file is incomplete: save it again"
        )
    a, b = (parts[name] for name in sorted(pair))
    for factor in (a, b):
        if factor.dtype not in ARITHMETIC:
            tip = "save the adapter in float32, float16 or bfloat16"
            raise NotSupported(f"adapter tensors of {factor.dtype} are not supported", where=where, help=tip)
    if len(a.shape) < 2 or len(a.shape) != len(b.shape) or b.size != math.prod(b.shape[:2]) or 0 in (a.size, b.size):
        tip = "an ungathered ZeRO-3 or FSDP save looks like this"
        raise NotSupported(f"lora_A {a.shape} and lora_B {b.shape} are not two matrices", where=where, help=tip)
    rank = strength(adapter.config, module)[0]
    if len(a.shape) > 2 and a.shape[0] == rank and 1 < (groups := rank / b.shape[1]) == rank // b.shape[1]:
        tip = "no tool can merge it: use it live, or train it with convolutions left out"
        what = (
            f"LoRA on a convolution of {int(groups)} groups lets each of them see the inputs of all, and its weight"
            " does not"
        )
        raise NotSupported(what, where=[*where, f"lora_A is {a.shape}, lora_B {b.shape}"], help=tip)
    if a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(
            f"adapter_config.json says rank {rank}, but lora_A is {a.shape} and lora_B {b.shape}",
            where=where,
            help="r or rank_pattern is not this adapter's; the scale depends on it, so it is not guessed",
        )
    return a, b


def delta(adapter: Adapter, module: str, weight: str, shape: Shape, base_config: Mapping[str, Any]) -> LowRank:
    """What the adapter adds to the base tensor `weight` of `shape`, as a matrix, for its module `module`.

    Raises AdapterError where shapes, rank or dtypes contradict each other or the base.
    """
    a, b = check_factors(adapter, module, f"base: {weight} {shape}")
    scale = strength(adapter.config, module)[2]
    embedding = bool(_EMBEDDING & set(adapter.lora[module]))
    linear, conv1d = (b.shape[0], *a.shape[1:]), (*a.shape[1:], b.shape[0])
    made = conv1d if embedding else linear
    fits = matrix_of(shape) if len(a.shape) == 2 else shape  # AdaLoRA's A on a convolution is a matrix
    if fits != made and (fits != conv1d or len(shape) > 2):
        what = f"the delta would be {made}, the base tensor is {shape}"
        part = adapter.names[f"{module}.{next(iter(adapter.lora[module]))}"]
        where = [f"{adapter.path}: {part}", f"base: {weight} {shape}"]
        raise AdapterError(what, where=where, help="the adapter belongs to another base, or to a resized one")
    if len(shape) > 2:
        return LowRank(reshape(b, b.shape[:2]), reshape(a, matrix_of(a.shape)), scale)
    if embedding:
        transposed = True
    elif linear == conv1d:
        known = base_config.get("model_type")
        transposed = (
            is_conv1d(base_config, weight.removesuffix(".weight"))
            if known
            else bool(adapter.config.get("fan_in_fan_out"))
        )
    else:
        transposed = shape == conv1d
    if transposed:
        return LowRank(permute(a, (1, 0)), permute(b, (1, 0)), scale)
    return LowRank(b, a, scale)


def matrix_of(shape: Shape) -> Shape:
    """The shape under which a tensor is a matrix: a convolution's kernels are its rows. Shapes of up to two axes
    stay.
    """
    return (shape[0], math.prod(shape[1:])) if len(shape) > 2 else shape


def bias_delta(adapter: Adapter, module: str, base: Tensor | None) -> Dense | None:
    """What the adapter adds to the base's bias of `module`; None where lora_B has no bias.

    Raises NotSupported where the base has none to add it to.
    """
    parts = adapter.lora[module]
    bias, asked = parts.get(BIAS), bool(adapter.config.get("lora_bias"))
    where = [
        f"{adapter.path}: {adapter.names[f'{module}.{BIAS if bias else next(iter(parts))}']}",
        f"base: {module}.bias",
    ]
    if asked != (bias is not None):
        said = (
            f"says lora_bias, but the module has no {BIAS}"
            if asked
            else "does not say lora_bias, but the module has one"
        )
        raise AdapterError(f"adapter_config.json {said}", where=where, help="restore the file from the training")
    if bias is None:
        return None
    if base is None:
        tip = "the class has no place for one: merge the adapter live, or train it without lora_bias"
        raise NotSupported("the adapter has a bias, the base's module has none", where=where, help=tip)
    if bias.shape != base.shape or bias.dtype not in ARITHMETIC:
        raise AdapterError(
            f"the adapter's bias is {bias.dtype} {bias.shape}, the base's {base.dtype} {base.shape}", where=where
        )
    return Dense(bias, strength(adapter.config, module)[2])


def strength(config: Mapping[str, Any], module: str) -> tuple[int, float, float]:
    """Rank, alpha and scale of the LoRA on `module`."""
    rank = int(pattern(config.get("rank_pattern"), module, config.get("r", 8)))
    alpha = pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8))
    return rank, alpha, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first pattern that matches the end of the module's name, as PEFT looks it up."""
    for key, value in (patterns or {}).items():
        if end_matches(key, module):
            return value
    return default
