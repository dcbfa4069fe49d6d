"""compressed-tensors, the format of llm-compressor: integers of 2 to 8 bits, packed or not, and floats of 8 and 4 bits.

The tensors tell which weights are quantised and in which way; config.json has groups of modules, with bits and the
elements that share a scale, and must agree. Sources: compressed-tensors 0.20 (`compressors/`, `quantization/`,
`utils/match.py`) and, for the words that were padded where bits do not divide 32, 0.12 (`compressors/pack_quantized`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from ..lazy.coding import Coding, Packing
from ..lazy.dtypes import BF16, F16
from ..lazy.tensor import Decoded, Shape, Tensor, reshape
from ..names import natural
from ..patterns.rule import Rule, rule_or_none
from .scheme import Quantised, Scheme, Source, same_but_ones

PACKED, PLAIN, SHAPE = ".weight_packed", ".weight", ".weight_shape"
PARTS = ("weight_scale", "weight_zero_point", "weight_global_scale", "weight_shape", "weight_g_idx")
LEFT = ("input_scale", "input_zero_point", "input_global_scale")
KINDS_OF_SCALE = ("scale", "zero_point", "global_scale")
CACHE = tuple(f"{of}_{kind}" for of in ("k", "v", "q", "output") for kind in KINDS_OF_SCALE)
BYTES = ("U8", "F8_E8M0")
NIBBLES = Packing(4, 8)
NAIVE = "naive-quantized"
ALIKE = {"I8": "int-quantized", "F8_E4M3": "float-quantized", "F8_E5M2": "float-quantized"}
UNSAID = ("", "mixed-precision", "dense", "fakequant")
NOT_READ = {
    "sparse-bitmask": "weights that are zero are left out of the file",
    "sparse-24-bitmask": "weights that are zero are left out of the file",
    "marlin-24": "the codes lie in the order of one GPU kernel",
    "mxfp6-pack-quantized": "floats of 6 bits",
}
ONLINE = ("input", "output", "q_attn", "k_cache")


@dataclass(frozen=True)
class Group:
    """How modules are quantised that match one of `targets`, as config.json says."""

    targets: tuple[str, ...]
    format: str
    weights: Mapping[str, Any]

    @property
    def bits(self) -> int:
        """Bits of a code."""
        return int(self.weights.get("num_bits", 8))

    def block(self, rows: int, columns: int) -> tuple[int, int] | None:
        """How many rows and columns of a weight share a scale; None where that is not said."""
        size, cut = self.weights.get("group_size"), self.weights.get("block_structure")
        cut = [int(n) for n in cut.split("x")] if isinstance(cut, str) and re.fullmatch(r"\d+x\d+", cut) else cut
        wide = size if type(size) is int and size > 0 else 0
        unsaid = "block" if cut else "group" if wide else "tensor" if size is None else "channel"
        match self.weights.get("strategy") or unsaid:
            case "tensor":
                return rows, columns
            case "channel":
                return 1, columns
            case "group" | "tensor_group" if wide:
                return 1, wide
            case "block" if isinstance(cut, list) and len(cut) == 2 and all(type(n) is int and n > 0 for n in cut):
                return cut[0], cut[1]
        return None


def find(source: Source) -> dict[str, Quantised]:
    """Every weight with codes. Raises FormatError where codes, companions and config.json contradict each other,
    NotSupported for formats that are not read.
    """
    _check_said(source)
    groups, coded = groups_of(source), _coded(source)
    _check_listed(source, coded, groups)
    shapes, choose = _shapes(source, coded), _chooser(source, groups)
    found = dict[str, Quantised]()
    for module, codes in coded.items():
        found[f"{module}.weight"] = _quantised(source, module, codes, choose(module), shapes)
    used = {name for one in found.values() for name in (*one.parts, *one.left)}
    stray = [n for n in source.tensors if n.rpartition(".")[2] in PARTS and n not in used]
    if stray:
        raise source.broken("scales or shapes lie here, and no codes that they belong to", stray)
    return found


def inner(said: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said of weights, which files of some time have one level deeper."""
    nested = said.get("quantization_config")
    return nested if isinstance(nested, Mapping) and "config_groups" not in said else said


def _check_said(source: Source) -> None:
    """Raise NotSupported for what is not read at all."""
    said = inner(source.said)
    sparse = source.said.get("sparsity_config")
    formats = [said.get("format"), sparse.get("format") if isinstance(sparse, Mapping) else None]
    formats += [g.get("format") for g in _groups_said(said).values() if isinstance(g, Mapping)]
    for name in formats:
        if isinstance(name, str) and name in NOT_READ:
            raise source.unread(f"weights in the format {name} are not read: {NOT_READ[name]}")
    if online := _online(said.get("transform_config")):
        what = f"weights are rotated, and their inputs or outputs are rotated when the model runs ({', '.join(online)})"
        raise source.unread(f"{what}: they mean nothing without that")


def _online(said: Any) -> list[str]:
    """Places of a `transform_config` at which something is rotated when the model runs."""
    groups = said.get("config_groups") if isinstance(said, Mapping) else None
    schemes = groups.values() if isinstance(groups, Mapping) else []
    applied = [one for scheme in schemes if isinstance(scheme, Mapping) for one in listed_in(scheme.get("apply"))]
    places = [one.get("location") for one in applied if isinstance(one, Mapping)]
    return sorted({place for place in places if isinstance(place, str) and place in ONLINE})


def listed_in(value: Any) -> list[Any]:
    """What should be a list, where it is one."""
    return value if isinstance(value, list) else []


def _groups_said(said: Mapping[str, Any]) -> Mapping[str, Any]:
    groups = said.get("config_groups")
    return groups if isinstance(groups, Mapping) else {}


def groups_of(source: Source) -> list[Group]:
    """The groups of config.json. Raises FormatError for one that says too little."""
    said, made = inner(source.said), list[Group]()
    for name, group in _groups_said(said).items():
        group = group if isinstance(group, Mapping) else {}
        targets, weights = group.get("targets"), group.get("weights")
        if not (isinstance(targets, list) and all(isinstance(target, str) for target in targets)):
            raise source.broken("a group of weights lacks targets", [f"config_groups.{name}"])
        if weights is None:
            continue
        bits = weights.get("num_bits", 8) if isinstance(weights, Mapping) else 0
        if not (type(bits) is int and 1 <= bits <= 8):
            raise source.broken("a group of weights lacks bits from 1 to 8", [f"config_groups.{name}"])
        made.append(Group(tuple(targets), str(group.get("format") or said.get("format") or ""), weights))
    return made


def _coded(source: Source) -> dict[str, str]:
    """The names of codes by their modules."""
    found = {n.removesuffix(PACKED): n for n in source.tensors if n.endswith(PACKED)}
    kinds = ("I8", "F8_E4M3", "F8_E5M2")
    return found | {
        n.removesuffix(PLAIN): n for n, t in source.tensors.items() if n.endswith(PLAIN) and t.dtype.name in kinds
    }


def named_by(entries: Iterable[str]) -> Callable[[str], bool]:
    """Whether one of the entries means a module by its name: as it is, or as a pattern from the start."""
    names, patterns = set(entries), [found for entry in entries if (found := _pattern(entry))]
    return lambda module: module in names or any(pattern.match(module) for pattern in patterns)


def _pattern(entry: str) -> Rule | None:
    """The pattern that an entry is, if it is one. Raises SurgeryError for one that may take forever."""
    return rule_or_none(entry.removeprefix("re:")) if entry.startswith("re:") else None


def _check_listed(source: Source, coded: Mapping[str, str], groups: Sequence[Group]) -> None:
    """Raise FormatError where config.json names modules that are not what it says."""
    entries = inner(source.said).get("ignore") or []
    if not isinstance(entries, list):
        raise source.broken(f"`ignore` is {entries!r}, and no list of modules", ["ignore"])
    ignored = [str(entry) for entry in entries]
    is_ignored = named_by(ignored)
    if wrong := [codes for module, codes in coded.items() if is_ignored(module)]:
        raise source.broken("weights are quantised that config.json lists as not quantised (`ignore`)", wrong)
    targets = {target for group in groups for target in group.targets}
    plain = [n for t in sorted(targets, key=natural) if t not in coded and (n := f"{t}.weight") in source.tensors]
    if plain := [name for name in plain if not is_ignored(name.removesuffix(".weight"))]:
        raise source.broken("config.json says of weights that they are quantised, and they are not", plain)


def _chooser(source: Source, groups: Sequence[Group]) -> Callable[[str], Group]:
    """The group of a module: of those that name it, else of those with a pattern, else with a class, the first."""
    targets = {target: group for group in reversed(groups) for target in group.targets}
    patterns = [(pattern, targets[t]) for t in sorted(targets) if (pattern := _pattern(t))]
    classes = [t for t in sorted(targets) if ":" not in t and "." not in t]
    linear = sorted(classes, key=lambda name: "Embedding" in name)

    def choose(module: str) -> Group:
        if module in targets:
            return targets[module]
        for pattern, group in patterns:
            if pattern.match(module):
                return group
        if not classes:
            what = "a weight is quantised, and no group of config.json (`config_groups`) means it"
            raise source.broken(what, [f"{module}.weight"])
        embedding = "emb" in module.rpartition(".")[2]
        return targets[linear[-1] if embedding else linear[0]]

    return choose


def _shapes(source: Source, coded: Mapping[str, str]) -> dict[str, Shape]:
    """The shapes that packed weights say that they have, by module."""
    names = [name for module in coded if (name := f"{module}{SHAPE}") in source.tensors]
    found = source.contents(names)
    return {
        name.removesuffix(SHAPE): tuple(
            int.from_bytes(data[i : i + 8], "little", signed=True) for i in range(0, len(data), 8)
        )
        for name, data in found.items()
    }


@dataclass(frozen=True)
class Weight:
    """A weight under construction: what lies there, and what is said of it."""

    source: Source
    module: str
    codes: str
    group: Group
    said_shape: Shape | None

    @property
    def tensor(self) -> Tensor:
        """Its codes."""
        return self.source.tensors[self.codes]

    def name(self, part: str) -> str:
        """The name of one of its tensors."""
        return f"{self.module}.{part}"

    def part(self, part: str) -> Tensor | None:
        """One of its tensors, where it is there."""
        return self.source.tensors.get(self.name(part))

    def needed(self, part: str) -> Tensor:
        """One of its tensors. Raises FormatError where it is not there."""
        self.source.check_there(self.codes, [self.name(part)])
        return self.source.tensors[self.name(part)]

    def broken(self, what: str, *parts: str) -> Exception:
        """The error for what does not fit."""
        return self.source.broken(what, [self.codes, *(self.name(part) for part in parts)])


Made = tuple[str, Coding, Shape, dict[str, Tensor]]


def _quantised(source: Source, module: str, codes: str, group: Group, shapes: Mapping[str, Shape]) -> Quantised:
    weight = Weight(source, module, codes, group, shapes.get(module))
    kind = _kind(weight)
    _check_format(weight, kind)
    title, coding, shape, parts = KINDS[kind](weight)
    scale = parts["scale"]
    dtype = scale.dtype if scale.dtype in (BF16, F16) else source.dtype
    decoded = Decoded(dtype, shape, coding, weight.tensor, tuple(parts.items()), codes)
    stored = [weight.name(part) for part in PARTS if weight.part(part) is not None]
    left = tuple(name for part in LEFT if (name := weight.name(part)) in source.tensors)
    return Quantised(f"compressed-tensors {title}", decoded, (codes, *stored), left)


def _check_format(weight: Weight, kind: str) -> None:
    """Raise FormatError unless its tensors are as each format says that config.json has for it: that of its group,
    and that of all.
    """
    names = [ALIKE.get(weight.tensor.dtype.name, kind), kind] if kind == NAIVE else [kind]
    for said in (weight.group.format, str(inner(weight.source.said).get("format") or "")):
        if said not in (*UNSAID, *names):
            what = f"{weight.codes} is {weight.tensor.dtype}, as {names[0]} stores it, and config.json says {said}"
            raise weight.broken(what, "weight_scale")


def _kind(weight: Weight) -> str:
    """The format in which its tensors are."""
    scale, codes = weight.needed("weight_scale").dtype.name, weight.tensor.dtype.name
    if weight.codes.endswith(PACKED):
        if codes == "U8":
            return "mxfp4-pack-quantized" if scale in BYTES else "nvfp4-pack-quantized"
        if codes == "I32":
            return "pack-quantized"
        raise weight.broken(f"packed codes are {codes}, and not I32 or U8")
    return "mxfp8-quantized" if scale in BYTES else NAIVE


def _grid(weight: Weight, shape: Shape) -> tuple[tuple[int, int], Tensor, str]:
    """How many rows and columns share a scale, the scales as a matrix for each matrix, and how that is called."""
    scale = weight.needed("weight_scale")
    *lead, rows, columns = shape
    block = weight.group.block(rows, columns)
    if block is None:
        raise weight.broken("config.json does not say which elements share a scale", "weight_scale")
    tall, wide = block
    title = {(rows, columns): "one scale", (1, columns): "a scale for each row"}.get(block)
    title = title or (f"groups of {wide}" if tall == 1 else f"blocks of {tall} x {wide}")
    wanted = (*lead, -(-rows // tall), -(-columns // wide))
    if not same_but_ones(scale.shape, wanted):
        what = f"the scales of {list(shape)} are {list(scale.shape)}, and config.json says {title}: {list(wanted)}"
        raise weight.broken(what, "weight_scale")
    return block, reshape(scale, wanted), title


def _integers(weight: Weight) -> Made:
    """Packed words of 32 bits."""
    bits, codes = weight.group.bits, weight.tensor
    _check_numbers(weight, "int", bits)
    shape = _shape(weight, bits)
    packing = _packing(weight, shape[-1], codes.shape[-1], "weight_shape")
    block, scale, title = _grid(weight, shape)
    parts, zero = {"scale": scale}, None
    if (tensor := _zero(weight)) is not None:
        packed = tensor.dtype.name == "I32" and tensor.shape != scale.shape
        if packed:
            zero = _zero_packing(weight, packing, tensor, scale)
        parts["zero"] = tensor if packed else _as_scales(weight, tensor, scale)
    if (index := weight.part("weight_g_idx")) is not None:
        if index.shape != shape[-1:]:
            raise weight.broken(f"{shape[-1]} columns need a group each, and have {list(index.shape)}", "weight_g_idx")
        parts["index"] = index
    offset = 0 if zero else 1 << (bits - 1)
    return f"int{bits}, {title}", Coding("integer", packing, block, offset=offset, zero=zero, signed=True), shape, parts


def _shape(weight: Weight, bits: int) -> Shape:
    """The shape of a packed weight. Raises FormatError where what is stored contradicts its codes."""
    codes = weight.tensor
    if len(codes.shape) < 2:
        raise weight.broken(f"packed codes are {list(codes.shape)}, and no matrix")
    if weight.said_shape is None:
        columns = codes.shape[-1] * 32 // bits
        block = weight.group.block(codes.shape[-2], columns)
        scale = weight.needed("weight_scale")
        columns = min(columns, block[1] * scale.shape[-1]) if block and scale.shape else columns
        return (*codes.shape[:-1], columns)
    shape = (*codes.shape[: len(codes.shape) - len(weight.said_shape)], *weight.said_shape)
    if len(weight.said_shape) < 2 or min(shape) < 1 or shape[:-1] != codes.shape[:-1]:
        what = f"packed codes are {list(codes.shape)}, and their shape is said to be {list(weight.said_shape)}"
        raise weight.broken(what, "weight_shape")
    return shape


@lru_cache(256)
def _fitting(bits: int, elements: int, words: int) -> tuple[Packing, ...]:
    """The packings in which so many elements fill so many words."""
    return tuple(one for one in (Packing(bits), Packing(bits, padded=True)) if one.length(elements) == words)


def _packing(weight: Weight, elements: int, words: int, part: str, like: Packing | None = None) -> Packing:
    """How so many elements lie in so many words: in one stream of bits, or, in older files, in fields of a word; of
    both, as those that they are `like` do. Raises FormatError where neither fits, or where both do.
    """
    bits = weight.group.bits
    fits = _fitting(bits, elements, words)
    if not fits:
        what = f"{elements} codes of {bits} bits need {Packing(bits).length(elements)} words, and there are {words}"
        raise weight.broken(what, part)
    if like in fits:
        return like
    if len(fits) == 2 and 32 % bits and words > 1:
        raise weight.broken(f"{elements} codes of {bits} bits in {words} words can be read in two ways", part)
    return fits[0]


def _zero(weight: Weight) -> Tensor | None:
    """The zero points, as stored; needed where config.json says that there are some."""
    if weight.group.weights.get("symmetric", True) is False:
        return weight.needed("weight_zero_point")
    return weight.part("weight_zero_point")


def _zero_packing(weight: Weight, like: Packing, zero: Tensor, scale: Tensor) -> Packing:
    """How packed zero points lie: down the rows, which are as many as the scales'."""
    wanted = (*scale.shape[:-2], zero.shape[-2] if len(zero.shape) > 1 else 0, scale.shape[-1])
    if zero.shape != wanted:
        what = f"zero points are {list(zero.shape)}, and the scales that they go with {list(scale.shape)}"
        raise weight.broken(what, "weight_zero_point", "weight_scale")
    return replace(_packing(weight, scale.shape[-2], zero.shape[-2], "weight_zero_point", like), down=True)


def _as_scales(weight: Weight, zero: Tensor, scale: Tensor) -> Tensor:
    """Zero points that are not packed, one for each scale."""
    if zero.size != scale.size:
        what = f"zero points are {list(zero.shape)}, and the scales that they go with {list(scale.shape)}"
        raise weight.broken(what, "weight_zero_point", "weight_scale")
    return reshape(zero, scale.shape)


def _check_numbers(weight: Weight, kind: str, *bits: int) -> None:
    """Raise FormatError where config.json says other numbers than the codes are."""
    said = weight.group.weights.get("type", "int"), weight.group.bits
    if said[0] != kind or said[1] not in bits:
        what = f"{weight.tensor.dtype} codes are {kind} of {bits[0]} bits, and config.json says {said[0]} of {said[1]}"
        raise weight.broken(what)


def _naive(weight: Weight) -> Made:
    """Integers and floats of 8 bits, each an element of its own."""
    shape, bits, codes = weight.tensor.shape, weight.group.bits, weight.tensor.dtype.name
    if len(shape) < 2:
        raise weight.broken(f"codes are {list(shape)}, and no matrix")
    _check_numbers(weight, "int" if codes == "I8" else "float", *(range(8, 1, -1) if codes == "I8" else (8,)))
    block, scale, title = _grid(weight, shape)
    parts = {"scale": scale}
    if (zero := _zero(weight)) is not None:
        parts["zero"] = _as_scales(weight, zero, scale)
    if codes == "I8":
        half = 1 << (bits - 1)
        return (
            f"int{bits}, {title}",
            Coding("integer", None, block, low=-half, high=half - 1, signed=True),
            shape,
            parts,
        )
    return f"FP8, {title}", Coding("float", None, block), shape, parts


def _nvfp4(weight: Weight) -> Made:
    """Floats of 4 bits, whose scales are floats of 8 over one number for all."""
    _check_numbers(weight, "float", 4)
    *lead, columns = weight.tensor.shape
    shape = (*lead, 2 * columns)
    block, scale, title = _grid(weight, shape)
    outer = weight.needed("weight_global_scale")
    if outer.size != 1:
        raise weight.broken(f"the scale of all is {list(outer.shape)}, and not one number", "weight_global_scale")
    return f"NVFP4, {title}", Coding("e2m1", NIBBLES, block, "quotient"), shape, {"scale": scale, "outer": outer}


def _mxfp4(weight: Weight) -> Made:
    """Floats of 4 bits, whose scales are powers of two."""
    _check_numbers(weight, "float", 4)
    *lead, columns = weight.tensor.shape
    shape = (*lead, 2 * columns)
    block, scale, title = _grid(weight, shape)
    return f"MXFP4, {title}", Coding("e2m1", NIBBLES, block, "exponent"), shape, {"scale": scale}


def _mxfp8(weight: Weight) -> Made:
    """Floats of 8 bits, whose scales are powers of two."""
    _check_numbers(weight, "float", 8)
    shape = weight.tensor.shape
    block, scale, title = _grid(weight, shape)
    return f"MXFP8, {title}", Coding("float", None, block, "exponent"), shape, {"scale": scale}


KINDS: Mapping[str, Callable[[Weight], Made]] = {
    "pack-quantized": _integers,
    NAIVE: _naive,
    "nvfp4-pack-quantized": _nvfp4,
    "mxfp4-pack-quantized": _mxfp4,
    "mxfp8-quantized": _mxfp8,
}


def skip(said: Mapping[str, Any], modules: Sequence[str], quantised: Sequence[str]) -> Mapping[str, Any]:
    """`ignore` has whole names, patterns and classes; nothing is left out that it does not list."""
    deeper = inner(said)
    before = [str(entry) for entry in deeper.get("ignore") or []]
    is_listed = named_by(before)
    wanted = [module for module in sorted(modules, key=natural) if not is_listed(module)]
    now = {**deeper, "ignore": [*before, *wanted]}
    return now if deeper is said else {**said, "quantization_config": now}


def restated(content: bytes, shape: Shape) -> bytes:
    """The shape that packed codes have, of as many axes as was said."""
    return b"".join(n.to_bytes(8, "little", signed=True) for n in shape[-(len(content) // 8) :])


SCHEME = Scheme(
    "compressed-tensors",
    find,
    skip,
    aliases=("sparseml", *KINDS, *ALIKE.values(), *UNSAID[1:], *NOT_READ),
    activations=CACHE,
    shape_in=SHAPE,
    restated=restated,
)
