"""A target: a class of transformers that computes what another model type computes, once names, places and config
are its own.

Everything is movement: tensors are split, renamed, transposed, joined with zeros, and never computed. What a target
cannot express is a reason why it does not fit, and the conversion is refused: such a checkpoint would load without a
warning, and compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...lazy.tensor import Tensor, Zeros, concat, permute
from ..fused.layout import Config
from ..fused.row import QKV_PROJ

Tensors = Mapping[str, Tensor]
Made = dict[str, tuple[Tensor, str]]  # name -> its new tensor, and the tensor whose shard it takes
Move = Callable[[Tensors], Made]


@dataclass(frozen=True, slots=True)
class Target:
    """One way from a model type to a class. The functions read the source's complete config; all patterns match
    whole names.
    """

    name: str  # model type of the result
    model_class: str
    source: str  # model type of the source
    classes: tuple[str, ...]  # the source's classes that are meant
    unfit: Callable[[Config], list[str]]  # why it would compute something else; reads incomplete configs too
    fields: Callable[[Config], dict[str, Any]]  # every field that the target's config class has of its own
    rules: tuple[
        tuple[str, str], ...
    ] = ()  # (pattern, replacement) of names, after the split; each name meets one of them
    kinds: tuple[str, ...] = ("qkv",)  # what is split
    names: Mapping[str, str] = field(default_factory=lambda: QKV_PROJ)  # what the parts are called
    moves: tuple[Move, ...] = ()  # in turn, after the renaming
    buffers: str = ""  # what the class computes itself: left out, by the source's names
    defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # what remote code assumes; empty: transformers has the config class
    notes: Callable[[Config], list[str]] = lambda _: []


def transposed(pattern: str) -> Move:
    """(in, out) -> (out, in), as Conv1D and nn.Linear store their weights."""
    return lambda tensors: {n: (permute(t, (1, 0)), n) for n, t in tensors.items() if re.fullmatch(pattern, n)}


def zero_biases(pattern: str) -> Move:
    """A bias of zeros for each weight that has none, where the target's class always has one."""

    def made(tensors: Tensors) -> Made:
        found: Made = {}
        for name, weight in tensors.items():
            bias = f"{name.removesuffix('weight')}bias"
            if re.fullmatch(pattern, name) and bias not in tensors:
                found[bias] = (Zeros(weight.dtype, weight.shape[:1]), name)
        return found

    return made


def zero_head_bias(head: str, embedding: str) -> Move:
    """A bias of zeros for the output head, whose weight may be the embedding's and then is not stored."""

    def made(tensors: Tensors) -> Made:
        name = head if head in tensors else embedding
        bias = f"{head.removesuffix('weight')}bias"
        absent = name in tensors and bias not in tensors
        return {bias: (Zeros(tensors[name].dtype, tensors[name].shape[:1]), name)} if absent else {}

    return made


def zero_rows(name: str, rows: int) -> Move:
    """`rows` rows of zeros in front of a matrix."""

    def made(tensors: Tensors) -> Made:
        if name not in tensors:
            return {}
        matrix = tensors[name]
        return {name: (concat([Zeros(matrix.dtype, (rows, *matrix.shape[1:])), matrix], 0), name)}

    return made


def picked(config: Config, *names: str) -> dict[str, Any]:
    """These fields as they are."""
    return {name: config[name] for name in names}


TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def common(config: Config) -> dict[str, Any]:
    """Fields that every target has and every source may leave out, since its base class knows them."""
    tokens = {name: config.get(name) for name in TOKENS}
    return {**picked(config, "vocab_size", "tie_word_embeddings"), **tokens, "use_cache": config.get("use_cache", True)}


def rope_fields(parameters: Config, partial: float = 1.0) -> dict[str, Any]:
    """How positions are rotated, as transformers 5 reads it, and under the names of before."""
    theta, kind = parameters["rope_theta"], parameters.get("rope_type") or parameters.get("type") or "default"
    rest = {
        k: v for k, v in parameters.items() if k not in ("rope_theta", "rope_type", "type", "partial_rotary_factor")
    }
    said = {"rope_type": kind, "rope_theta": theta, "partial_rotary_factor": partial, **rest}
    before = (
        {"original_max_position_embeddings": rest["original_max_position_embeddings"]} if kind == "longrope" else {}
    )
    old = {"rope_theta": theta, "partial_rotary_factor": partial, "rope_scaling": None if kind == "default" else said}
    return {"rope_parameters": said, **old, **before}


def partial_rotary(config: Config, default: float = 1.0) -> float:
    """The share of each head that is rotated, wherever the config says it."""
    for place in (config.get("rope_parameters"), config.get("rope_scaling"), config):
        if isinstance(place, Mapping) and place.get("partial_rotary_factor") is not None:
            return float(place["partial_rotary_factor"])
    return float(config.get("rotary_pct", default))


def reasons(*pairs: tuple[Any, str]) -> list[str]:
    """The texts whose condition holds."""
    return [text for holds, text in pairs if holds]


def first(config: Config, *names: str) -> Any:
    """The first of these fields that the config has: old and new spellings. Raises KeyError naming them."""
    for name in names:
        if config.get(name) is not None:
            return config[name]
    raise KeyError(" or ".join(names))


def one_of(patterns: Sequence[tuple[str, str]], stem: str, to: str) -> tuple[tuple[str, str], ...]:
    """Rules for what is in a layer: (pattern, replacement) of what follows `stem` and the layer's number, and `to`
    and it.
    """
    return tuple((rf"^{stem}(\d+)\.{pattern}\.", rf"{to}\1.{new}.") for pattern, new in patterns)
