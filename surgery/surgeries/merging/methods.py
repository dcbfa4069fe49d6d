"""Adapters of other kinds than LoRA: what they do to a module of the base, in its place."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from ...adapters.methods import method_of
from ...adapters.methods.method import Effect, Method, Several, Target, effect_of, turned, unused
from ...checkpoint import Checkpoint
from ...errors import NotSupported
from ...files.peft import Adapter
from ...lazy.dtypes import F32, F64, Dtype
from ...lazy.tensor import Input, Tensor, add, permute, reshape
from ...models.families import is_conv1d
from ...models.scaled_embeddings import scales
from .changes import Placed, Turn


def place_method(
    checkpoint: Checkpoint, adapter: Adapter, method: Method, module: str, weight: float, placed: Placed
) -> None:
    """Place what the adapter does to a module and its bias. Raises AdapterError, NotSupported."""
    name, bias = f"{module}.weight", f"{module}.bias"
    base = placed.whole.get(name, checkpoint.tensors[name])
    under = placed.whole.get(bias, checkpoint.tensors.get(bias))
    target = _target(checkpoint, adapter, method, module, base, under)
    effect = _effect(target, method)
    for part in unused(target, effect):
        placed.dropped[adapter.names[f"{module}.{part}"]] = target.parts[part]
    notes = [*effect.notes, *([method.kernels] if method.kernels and math.prod(target.weight.shape[2:]) > 1 else [])]
    placed.notes += [note for note in notes if note not in placed.notes]
    if (effect.bias or effect.bias_gain) and under is None:
        tip = "the class has no place for one: merge the adapter live"
        raise NotSupported("the adapter changes a bias, the base's module has none", where=target.where, help=tip)
    several = effect.several or method.several
    if several == "sum":
        for key, deltas in ((name, effect.deltas), (bias, effect.bias)):
            if deltas:
                placed.deltas.setdefault(key, []).extend(one.times(weight) for one in deltas)
        return
    if weight != 1:
        tip = "leave --weights and --scale at 1: what multiplies a weight has no part of itself to add"
        what = f"{method.name} can only be merged with weight 1, and {weight:g} is asked for"
        raise NotSupported(what, where=target.where, help=tip)
    _turn(
        placed, method, several, name, lambda tensor: _applied(replace(target, weight=_upright(tensor, target)), method)
    )
    if effect.bias or effect.bias_gain:
        _turn(placed, method, several, bias, lambda tensor: _on_bias(replace(target, bias=tensor), method))


def sources_of(adapter: Adapter) -> tuple[Input, ...]:
    """The adapter's inputs, with the names of tensors that its kind uses in part, or in parts more than once."""
    method = method_of(adapter)
    if method is None:
        return adapter.inputs
    keys = {part: part for part in adapter.shared}
    keys |= {f"{module}.{part}": part for module, parts in adapter.lora.items() for part in parts}
    partly = {adapter.names[key] for key, part in keys.items() if method.partly(part)}
    return tuple(replace(source, partly=source.partly | (partly & source.tensors.keys())) for source in adapter.inputs)


def notes_on_sums(adapters: Sequence[Adapter]) -> list[str]:
    """What a user should know of several adapters of a kind on one module."""
    notes = []
    for method in dict.fromkeys(map(method_of, adapters)):
        modules = [set(one.lora) for one in adapters if method_of(one) is method]
        if method and method.together and len(set().union(*modules)) < sum(map(len, modules)):
            notes.append(method.together)
    return notes


def _turn(placed: Placed, method: Method, several: Several, name: str, makes: Callable[[Tensor], Tensor]) -> None:
    placed.turns.setdefault(name, []).append(Turn(method.peft_type, several == "last", makes))


def _target(
    checkpoint: Checkpoint, adapter: Adapter, method: Method, module: str, base: Tensor, bias: Tensor | None
) -> Target:
    """The module as its layer computes."""
    conv1d = len(base.shape) == 2 and is_conv1d(checkpoint.config, module)
    target = Target(adapter, module, permute(base, (1, 0)) if conv1d else base, bias, conv1d)
    if conv1d and not method.conv1d:
        raise target.unsupported(f"{method.name} on a Conv1D is not supported: PEFT builds none")
    if not method.scaled and scales(checkpoint.config, module):
        what = (
            f"{method.name} on an embedding that the model scales is not supported: PEFT adds to what is scaled already"
        )
        raise target.unsupported(what, f"leave it out with --except '{re.escape(module)}', or merge it live")
    return target


def _effect(target: Target, method: Method) -> Effect:
    """What the adapter does, on the weight as it is stored."""
    effect = effect_of(target, method)
    try:
        return turned(effect) if target.conv1d else effect
    except LookupError as error:
        raise target.unsupported(f"{method.name} on a Conv1D is not supported") from error


def _applied(target: Target, method: Method) -> Tensor:
    """The weight that the adapter makes of the target's, as it is stored."""
    effect = _effect(target, method)
    stored = permute(target.weight, (1, 0)) if target.conv1d else target.weight
    matrix = permute(target.matrix, (1, 0)) if target.conv1d else target.matrix
    matrix = matrix if effect.matrix is None else effect.matrix
    return reshape(add(matrix, effect.deltas, _wide(matrix), effect.gain), stored.shape)


def _on_bias(target: Target, method: Method) -> Tensor:
    """The bias that the adapter makes of the target's."""
    assert target.bias
    effect = _effect(target, method)
    return add(target.bias, effect.bias, _wide(target.bias), effect.bias_gain)


def _wide(tensor: Tensor) -> Dtype:
    """In what is computed on before the one rounding."""
    return F64 if tensor.dtype == F64 else F32


def _upright(tensor: Tensor, like: Target) -> Tensor:
    """A stored weight as the layer computes with it."""
    return permute(tensor, (1, 0)) if like.conv1d else tensor
