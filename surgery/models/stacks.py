"""What a class of transformers builds for each layer of its stacks, for a config: so that two configs can be compared
layer by layer.

A stack is what is numbered first in a name: `model.layers` in model.layers.3.mlp.experts.5.w1.weight. What a layer is:
the types of its modules, the shapes of its tensors, and each plain value that its modules hold (a window, whether it
attends to all, a scale that follows from its place), but for the number of the layer itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .skeleton import built

_NUMBERED = re.compile(r"(?P<stack>(?:[^.\d][^.]*\.)+)(?P<index>\d+)(?:\.(?P<rest>.*))?", re.DOTALL)
Said = tuple[str, Any]  # what is said of, such as mlp.experts:num_experts, and what
Layer = frozenset[Said]


@dataclass(frozen=True)
class Stacks:
    """The layers of each stack of a class, and the shapes of the tensors that are in none."""

    layers: Mapping[str, tuple[Layer, ...]]
    rest: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def numbered(name: str) -> tuple[str, int, str] | None:
    """The stack of a name, the number of its layer, and what is left of the name; None where it is in no stack."""
    found = _NUMBERED.fullmatch(name)
    return (found["stack"].removesuffix("."), int(found["index"]), found["rest"] or "") if found else None


def stacks_of(config: Mapping[str, Any], model_class: str) -> Stacks:
    """What `model_class` builds for this config. Raises PlanError where it refuses it."""
    model = built(config, model_class)
    layers, rest = dict[str, dict[int, set[Said]]](), dict[str, tuple[int, ...]]()
    for name, module in model.named_modules():
        if place := numbered(name):
            stack, index, inside = place
            layers.setdefault(stack, {}).setdefault(index, set()).update(_values(module, inside, index))
    for name, tensor in model.state_dict().items():
        if place := numbered(name):
            stack, index, inside = place
            layers.setdefault(stack, {}).setdefault(index, set()).add((inside, tuple(tensor.shape)))
        else:
            rest[name] = tuple(tensor.shape)
    return Stacks({s: tuple(frozenset(one[i]) for i in sorted(one)) for s, one in layers.items()}, rest)


def _values(module: Any, inside: str, index: int) -> set[Said]:
    """The type of a module, and the plain values that it holds; a number that is the layer's own says nothing."""
    found: set[Said] = {(inside, type(module).__name__)}
    for key, value in plain_values(module).items():
        own = type(value) is int and value == index and ("idx" in key or "index" in key or key.endswith("id"))
        found.add((f"{inside}:{key}", "its own number" if own else repr(value)))
    return found


def plain_values(module: Any) -> dict[str, Any]:
    """What a module holds under its attributes' names: numbers, texts, and lists of them."""
    return {k: v for k, v in vars(module).items() if not k.startswith("_") and k != "training" and _plain(v)}


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
