"""Fused projections: where q, k and v lie in them. A table with one source per row, and one formula.

    the fused axis = groups × (slots of q, k, v, in `order`) × head_dim

blocked `[q|k|v]` is groups=1 with slots (Hq, Hkv, Hkv); interleaved per head is groups=H with slots (1, 1, 1); grouped is
groups=Hkv with slots (Hq/Hkv, 1, 1). Sources name the class in transformers 5.23 whose forward pass was read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import LayoutError
from .names import natural
from .tensor import Shape, Tensor, concat, narrow, reshape

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the parts of a fused axis lie: `groups` times, one after another, `slots[i]` heads of part i."""

    groups: int
    slots: tuple[int, ...]
    head_dim: int

    @property
    def rows(self) -> int:
        """Length of the fused axis."""
        return self.groups * sum(self.slots) * self.head_dim

    def __str__(self) -> str:
        return f"{self.groups} × [{'|'.join(str(n * self.head_dim) for n in self.slots)}]"


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table: the fused modules of some model types, and the names and places of their parts."""

    model_types: tuple[str, ...]
    parent: str  # regular expression for the whole name of the module that holds the fused one, or its parts
    fused: str  # last name of the fused module
    parts: tuple[str, ...]  # last names of its parts, in the order of the fused axis
    layout: Callable[[Config], Layout]
    source: str
    axis: int = 0  # of the weight; a bias has one axis only


def split_axis(tensor: Tensor, axis: int, layout: Layout) -> list[Tensor]:
    """The parts of a fused axis, in their order there.

    (…, groups * slots * head_dim, …) -> part i: (…, groups * slots[i] * head_dim, …). Raises LayoutError.
    """
    if tensor.shape[axis] != layout.rows:
        raise LayoutError(f"axis {axis} of {tensor.shape} has {tensor.shape[axis]} entries, not {layout.rows} = {layout}")
    lead, tail = tensor.shape[:axis], tensor.shape[axis + 1 :]
    grouped = reshape(tensor, (*lead, layout.groups, sum(layout.slots), layout.head_dim, *tail))
    parts, begin = [], 0
    for slots in layout.slots:
        if layout.groups == 1:
            part = narrow(tensor, axis, begin * layout.head_dim, slots * layout.head_dim)
        else:
            part = narrow(grouped, axis + 1, begin, slots)
        parts.append(reshape(part, (*lead, layout.groups * slots * layout.head_dim, *tail)))
        begin += slots
    return parts


def fuse_axis(parts: Sequence[Tensor], axis: int, layout: Layout) -> Tensor:
    """The inverse of `split_axis`."""

    def grouped(shape: Shape, slots: int) -> Shape:
        return (*shape[:axis], layout.groups, slots, layout.head_dim, *shape[axis + 1 :])

    if layout.groups == 1:
        return concat(parts, axis)
    views = [reshape(p, grouped(p.shape, n)) for p, n in zip(parts, layout.slots, strict=True)]
    whole = (*parts[0].shape[:axis], layout.rows, *parts[0].shape[axis + 1 :])
    return reshape(concat(views, axis + 1), whole)


def _number(config: Config, *names: str) -> int:
    """The first of the config's fields that is a positive integer: families spell them differently."""
    for name in names:
        value = config.get(name)
        if type(value) is int and value > 0:
            return value
    raise LayoutError(
        f"config.json has none of {', '.join(names)}",
        where=[f"model type {config.get('model_type', 'unknown')!r}"],
        help="complete config.json from the model's class: the layout of its fused tensors depends on it",
    )


def _grouped_query(config: Config) -> Layout:
    """[q | k | v] with fewer heads of k and v."""
    heads = _number(config, "num_attention_heads")
    kv_heads = _number(config, "num_key_value_heads", "num_attention_heads")
    head_dim = _number(config, "head_dim") if config.get("head_dim") else _number(config, "hidden_size") // heads
    return Layout(1, (heads, kv_heads, kv_heads), head_dim)


def _thirds(*names: str) -> Callable[[Config], Layout]:
    """[q | k | v] of equal parts, each as wide as the model."""
    return lambda config: Layout(1, (1, 1, 1), _number(config, *names))


def _per_head(heads: tuple[str, ...], width: tuple[str, ...]) -> Callable[[Config], Layout]:
    """q, k, v of head 0, then of head 1, and so on."""

    def layout(config: Config) -> Layout:
        count, wide = _number(config, *heads), _number(config, *width)
        if wide % count:
            raise LayoutError(f"{wide} channels are not a multiple of {count} heads", where=["config.json"])
        return Layout(count, (1, 1, 1), wide // count)

    return layout


FAMILIES: tuple[Family, ...] = (
    Family(
        ("phi3",),
        r"(?:.*\.)?layers\.\d+\.self_attn",
        "qkv_proj",
        ("q_proj", "k_proj", "v_proj"),
        _grouped_query,
        "models/phi3/modeling_phi3.py Phi3Attention.forward",
    ),
    Family(
        ("sam_vision_model", "sam"),
        r"(?:.*\.)?vision_encoder\.layers\.\d+\.attn",
        "qkv",
        ("q", "k", "v"),
        _thirds("hidden_size"),
        "models/sam/modeling_sam.py SamVisionAttention.forward",
    ),
    Family(
        ("gpt2", "gpt-sw3"),
        r"(?:.*\.)?h\.\d+\.attn",
        "c_attn",
        ("q_attn", "k_attn", "v_attn"),
        _thirds("n_embd", "hidden_size"),
        "models/gpt2/modeling_gpt2.py GPT2Attention.forward: Conv1D, so the weight is (in, out)",
        axis=1,
    ),
    Family(
        ("gpt_neox",),
        r"(?:.*\.)?layers\.\d+\.attention",
        "query_key_value",
        ("query", "key", "value"),
        _per_head(("num_attention_heads",), ("hidden_size",)),
        "models/gpt_neox/modeling_gpt_neox.py GPTNeoXAttention.forward",
    ),
    Family(
        ("bloom",),
        r"(?:.*\.)?h\.\d+\.self_attention",
        "query_key_value",
        ("query", "key", "value"),
        _per_head(("n_head", "num_attention_heads"), ("hidden_size", "n_embed")),
        "models/bloom/modeling_bloom.py BloomAttention._reshape",
    ),
)


# Last names under which fused projections are known, in families that the table has and that it has not.
_LOOKS_FUSED = frozenset(
    "qkv qkv_proj query_key_value c_attn Wqkv wqkv W_pack att_proj qkv_linear in_proj_qkv linear_qkv gqkv_proj w_qkv".split()
)


def looks_fused(modules: Collection[str]) -> list[str]:
    """The modules whose name says that they are fused, in natural order."""
    return sorted((m for m in modules if m.rpartition(".")[2] in _LOOKS_FUSED), key=natural)


def sections(config: Config) -> list[Config]:
    """config.json and the configs nested in it, such as `vision_config`, each under its model type.

    Early checkpoints of composite models give their parts no type, or an empty one: SAM's `vision_config` is then a
    `sam_vision_model`, as transformers has called it since.
    """
    found: list[Config] = [config] if config else []
    for key, value in config.items():
        if key.endswith("_config") and isinstance(value, Mapping) and key != "quantization_config":
            kind = value.get("model_type") or f"{config.get('model_type')}_{key.removesuffix('_config')}_model"
            found += sections({**value, "model_type": kind})
    return found


@dataclass(frozen=True, slots=True)
class Fused:
    """A family found in a checkpoint: its layout there, and the fused modules by name."""

    family: Family
    model_type: str
    layout: Layout
    modules: tuple[str, ...]

    def parts_of(self, module: str) -> list[str]:
        """The names of the parts of one fused module."""
        parent = module.rpartition(".")[0]
        return [f"{parent}.{part}" for part in self.family.parts]


def detect(config: Config, modules: Collection[str]) -> list[Fused]:
    """The fused projections among `modules` that the model types in config.json have."""
    return _found(config, modules, lambda family: (family.fused,))


def detect_split(config: Config, modules: Collection[str]) -> list[Fused]:
    """The same for their parts: which modules could be fused, whether or not all parts are there."""
    return _found(config, modules, lambda family: family.parts)


def _found(config: Config, modules: Collection[str], leaves: Callable[[Family], tuple[str, ...]]) -> list[Fused]:
    found, seen = [], set[str]()
    for section in sections(config):
        for family in FAMILIES:
            if section.get("model_type") not in family.model_types:
                continue
            rule = re.compile(rf"(?:{family.parent})\.(?:{'|'.join(map(re.escape, leaves(family)))})")
            fused = {f"{m.rpartition('.')[0]}.{family.fused}" for m in modules if rule.fullmatch(m)} - seen
            if fused and _has_sizes(family, section):
                seen |= fused
                found.append(Fused(family, str(section["model_type"]), family.layout(section), tuple(sorted(fused, key=natural))))
    return found


def _has_sizes(family: Family, section: Config) -> bool:
    """Whether this section is the one that describes the family: a composite config names the type, its parts the sizes."""
    nested = any(k.endswith("_config") and isinstance(v, Mapping) and k != "quantization_config" for k, v in section.items())
    if not nested:
        return True
    try:
        family.layout(section)
    except LayoutError:
        return False
    return True
