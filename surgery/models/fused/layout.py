"""Layouts of a fused axis: one formula for all of them, and where its numbers come from in config.json.

    the fused axis = groups × (slots of each part, in the order of the parts) × unit

blocked `[q|k|v]` is groups=1 with slots (Hq, Hkv, Hkv); interleaved per head is groups=H with slots (1, 1, 1);
grouped is groups=Hkv with slots (Hq/Hkv, 1, 1); the unit is the head's dimension. Halves `[gate|up]` are groups=1
with slots (1, 1).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from ...errors import LayoutError, series
from ...lazy.tensor import Shape, Tensor, concat, narrow, reshape

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the parts of a fused axis lie: `groups` times, one after another, `slots[i]` units of part i."""

    groups: int
    slots: tuple[int, ...]
    unit: int

    @property
    def length(self) -> int:
        """Length of the fused axis."""
        return self.groups * sum(self.slots) * self.unit

    @property
    def lengths(self) -> tuple[int, ...]:
        """Length of each part."""
        return tuple(self.groups * n * self.unit for n in self.slots)

    @property
    def style(self) -> str:
        """`blocked`, `interleaved` or `grouped`, as the option `--layout` calls it."""
        if self.groups == 1:
            return "blocked"
        return "interleaved" if set(self.slots) == {1} else "grouped"

    def __str__(self) -> str:
        return f"{self.groups} × [{'|'.join(str(n * self.unit) for n in self.slots)}]"


@dataclass(frozen=True, slots=True)
class Place:
    """All that a layout may follow from: the config that describes the module, its name, the length of its fused
    axis.
    """

    config: Config
    module: str
    length: int


Rule = Callable[[Place], Layout]


def split_axis(tensor: Tensor, axis: int, layout: Layout) -> list[Tensor]:
    """The parts of a fused axis, in their order there.

    (…, groups * slots * unit, …) -> part i: (…, groups * slots[i] * unit, …). Raises LayoutError.
    """
    if tensor.shape[axis] != layout.length:
        raise LayoutError(
            f"axis {axis} of {tensor.shape} has {tensor.shape[axis]} entries, not {layout.length} = {layout}"
        )
    lead, tail = tensor.shape[:axis], tensor.shape[axis + 1 :]
    grouped = reshape(tensor, (*lead, layout.groups, sum(layout.slots), layout.unit, *tail))
    parts, begin = [], 0
    for slots, length in zip(layout.slots, layout.lengths, strict=True):
        flat = layout.groups == 1
        part = narrow(tensor, axis, begin * layout.unit, length) if flat else narrow(grouped, axis + 1, begin, slots)
        parts.append(reshape(part, (*lead, length, *tail)))
        begin += slots
    return parts


def fuse_axis(parts: Sequence[Tensor], axis: int, layout: Layout) -> Tensor:
    """The inverse of `split_axis`."""

    def grouped(shape: Shape, slots: int) -> Shape:
        return (*shape[:axis], layout.groups, slots, layout.unit, *shape[axis + 1 :])

    if layout.groups == 1:
        return concat(parts, axis)
    views = [reshape(p, grouped(p.shape, n)) for p, n in zip(parts, layout.slots, strict=True)]
    whole = (*parts[0].shape[:axis], layout.length, *parts[0].shape[axis + 1 :])
    return reshape(concat(views, axis + 1), whole)


def number(config: Config, *names: str) -> int:
    """The first of the config's fields that is a positive integer: families spell them differently.

    A name may be a path: `attn_config.kv_n_heads`. Raises LayoutError where there is none.
    """
    for name in names:
        value: Any = config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if type(value) is int and value > 0:
            return value
    there = [f"{name} = {value!r}" for name in names if (value := config.get(name)) is not None]
    raise LayoutError(
        f"config.json says {', '.join(there)}, which is no head count or width"
        if there
        else f"config.json has none of {series(names)}",
        where=[f"config.json: model type {config.get('model_type', 'unknown')!r}"],
        help="complete config.json from the model's class: the layout of its fused tensors depends on it",
    )


def has(config: Config, *names: str) -> bool:
    """Whether `number` would find one."""
    try:
        return bool(number(config, *names))
    except LayoutError:
        return False


HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "attn_config.kv_n_heads", "num_query_groups")
WIDTH = ("hidden_size", "n_embd", "n_embed", "d_model", "embed_dim")


def equal(parts: int) -> Rule:
    """Blocks of equal length, as many as there are parts: the tensor's own length tells how long."""

    def layout(place: Place) -> Layout:
        if place.length % parts:
            raise LayoutError(f"{place.length} entries are not a multiple of {parts} equal parts", where=[place.module])
        return Layout(1, (1,) * parts, place.length // parts)

    return layout


def alternating(parts: int) -> Rule:
    """The parts' entries in turn: 0::2 and 1::2 for two."""

    def layout(place: Place) -> Layout:
        return Layout(equal(parts)(place).unit, (1,) * parts, 1)

    return layout


def full_width(*names: str) -> Rule:
    """[q|k|v] of equal parts, each as wide as the model, which config.json tells."""
    return lambda place: Layout(1, (1, 1, 1), number(place.config, *names or WIDTH))


def grouped_query(
    heads: tuple[str, ...] = HEADS,
    kv_heads: tuple[str, ...] = KV_HEADS,
    width: tuple[str, ...] = WIDTH,
    head_dim: tuple[str, ...] = (),
    *,
    by_group: bool = False,
) -> Rule:
    """q with `heads` heads, k and v with `kv_heads` (as many as q where the config has none): blocked, or one group
    after another. `head_dim` names fields that win over width / heads, for classes that read them.
    """

    def layout(place: Place) -> Layout:
        config = place.config
        count = number(config, *heads)
        kv = number(config, *kv_heads, *heads)
        dim = (
            number(config, *head_dim)
            if head_dim and has(config, *head_dim)
            else divided(number(config, *width), count, "heads")
        )
        if by_group:
            return Layout(kv, (divided(count, kv, "groups"), 1, 1), dim)
        return Layout(1, (count, kv, kv), dim)

    return layout


def per_head(heads: tuple[str, ...] = HEADS, width: tuple[str, ...] = WIDTH, parts: int = 3) -> Rule:
    """All parts of head 0, then of head 1, and so on; each part's head is width / heads wide."""

    def layout(place: Place) -> Layout:
        count = number(place.config, *heads)
        return Layout(count, (1,) * parts, divided(number(place.config, *width), count, "heads"))

    return layout


def in_groups(groups: int, *sizes: int) -> Layout:
    """`groups` times parts of these sizes, which need not be multiples of each other."""
    unit = gcd(*sizes)
    return Layout(groups, tuple(size // unit for size in sizes), unit)


def divided(whole: int, count: int, what: str) -> int:
    """whole / count, which must be whole. Raises LayoutError."""
    if whole % count:
        raise LayoutError(
            f"{whole} is not a multiple of {count} {what}",
            where=["config.json"],
            help="its numbers contradict each other",
        )
    return whole // count


def sections(config: Config) -> list[Config]:
    """config.json and the configs nested in it, such as `vision_config`, each under its model type.

    Early checkpoints of composite models give their parts no type, or an empty one: SAM's `vision_config` is then a
    `sam_vision_model`, as transformers has called it since.
    """
    kind = _untyped(config) if not config.get("model_type") else ""
    found: list[Config] = [{**config, "model_type": kind} if kind else config] if config else []
    for key, value in config.items():
        if not isinstance(value, Mapping) or key == "quantization_config":
            continue
        if key.endswith("_config") or value.get("model_type"):  # an encoder-decoder has `encoder` and `decoder`
            kind = value.get("model_type") or f"{config.get('model_type')}_{key.removesuffix('_config')}_model"
            found += sections({**value, "model_type": kind})
    return found


# The families of timm whose qkv is its `Attention`, or BEiT's; among the others, and in EVA's variants, it is not
# always.
_TIMM = re.compile(r"(vit|deit3?|beit(?:v2)?|eva(?:02)?)_(?!.*(?:rope|dinov3))")
_CLASSES = {"CogVLMForCausalLM": "cogvlm", "CogAgentForCausalLM": "cogagent"}


def _untyped(config: Config) -> str:
    """The type of a config that names none: timm's `architecture`, or a class whose config has no type."""
    if found := _TIMM.match(str(config.get("architecture", ""))):
        return f"timm:{found[1]}"
    return next((_CLASSES[name] for name in config.get("architectures") or () if name in _CLASSES), "")
