"""Find the fused modules of a checkpoint: by the model types in config.json, else by names and shapes where these leave one
layout. Never by a guess: a wrong layout loads without an error and computes nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ..errors import LayoutError, NotSupported, listed
from ..names import natural
from ..tensor import Shape, Tensor
from .layout import Config, Layout, Place, sections
from .row import IN_PROJ, LINEAR, QKV_PROJ, Row, Site
from .tables import TABLE

KINDS = ("qkv", "kv", "experts", "gate_up")

Tensors = Mapping[str, Tensor]
Names = Mapping[str, str]
NO_NAMES: Names = {}

# Last names under which fused projections of attention are known, and the layouts that they have in one family or another.
STYLES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("blocked", "interleaved"),
    "qkv_proj": ("blocked", "grouped", "interleaved"),
    "query_key_value": ("interleaved", "grouped", "blocked"),
    "c_attn": ("blocked", "interleaved"),
    "Wqkv": ("blocked",),
    "W_pack": ("blocked",),
    "wqkv": ("grouped", "blocked"),
    "att_proj": ("blocked",),
    "qkv_linear": ("blocked",),
    "linear_qkv": ("grouped", "interleaved", "blocked"),
    "w_qkv": ("blocked",),
    "in_proj": ("blocked",),  # torch's in_proj_weight; a module in_proj, as Mamba has one, is something else
}
# Names of the projection that follows attention: as many columns as q has rows.
_OUTPUTS = ("o_proj", "out_proj", "dense", "proj", "c_proj", "wo", "out")


def detect(config: Config, tensors: Tensors, kinds: Collection[str] = KINDS, names: Names = NO_NAMES) -> list[Site]:
    """The fused modules among `tensors`, in natural order; `names` are other names for their parts (key -> last name).

    Raises LayoutError where they contradict their row.
    """
    found = _by_type(config, kinds, lambda row, section, why: fused_sites(row.called(names), section, tensors, why))
    if "qkv" in kinds:
        types = {section.get("model_type") for section in sections(config)}
        known = {row.fused for row in TABLE if types & set(row.model_types)}  # the row says which of these are, and which are not
        for module, suffix in looks_fused(tensors):
            if module not in found and module.rpartition(".")[2] not in known and (site := _by_name(tensors, module, suffix, names)):
                found[module] = site
    return sorted(found.values(), key=lambda site: natural(site.module))


def detect_split(config: Config, tensors: Tensors, kinds: Collection[str] = KINDS, names: Names = NO_NAMES) -> list[Site]:
    """The places of fused modules whose parts are among `tensors`. Raises LayoutError where parts are missing or do not fit."""
    found = _by_type(config, kinds, lambda row, section, why: split_sites(row.called(names), section, tensors, why))
    return sorted(found.values(), key=lambda site: natural(site.module))


def looks_fused(names: Iterable[str]) -> list[tuple[str, str]]:
    """(module, suffix of its weight) of what by its name is a fused projection of attention, in natural order."""
    found = []
    for name in names:
        suffix = ".weight" if name.endswith(".weight") else "_weight"
        module = name.removesuffix(suffix)
        leaf = module.rpartition(".")[2]
        if module != name and leaf in STYLES and (leaf == "in_proj") == (suffix == "_weight"):
            found.append((module, suffix))
    return sorted(found, key=lambda pair: natural(pair[0]))


def known_types(kinds: Collection[str] = KINDS) -> list[str]:
    """The model types that the table has rows for."""
    return sorted({kind for row in TABLE if row.kind in kinds for kind in row.model_types})


def fused_sites(row: Row, config: Config, tensors: Tensors, why: str) -> list[Site]:
    """Where `row` applies to fused modules among `tensors`. Raises LayoutError where one is not whole."""
    rule, first = row.fused_rule(), row.tensors[0][0]
    modules: dict[str, set[str]] = {}
    for name in tensors:
        if match := rule.fullmatch(name):
            modules.setdefault(name.removesuffix(match["suffix"]), set()).add(match["suffix"])
    _check_whole({module: {module: suffixes} for module, suffixes in modules.items()}, row.fused_suffixes)
    return [_site(row, config, module, tensors[f"{module}{first}"].shape, why) for module in modules]


def split_sites(row: Row, config: Config, tensors: Tensors, why: str) -> list[Site]:
    """Where `row` applies to the parts of modules that could be fused. Raises LayoutError where a part is missing."""
    rule, first = row.part_rule(), row.tensors[0][1]
    found: dict[str, dict[str, set[str]]] = {}
    for name in tensors:
        if match := rule.fullmatch(name):
            parts = found.setdefault(f"{match['parent']}{row.fused}", {})
            parts.setdefault(name.removesuffix(match["suffix"]), set()).add(match["suffix"])
    experts = {module: -(-len(parts) // len(row.parts)) if row.stacked else 0 for module, parts in found.items()}
    wanted = {module: Site(row, module, Layout(1, (1,), 1), experts[module], "", why).parts for module in found}
    if strays := sorted({part for module, parts in found.items() for part in parts} - {p for w in wanted.values() for p in w}, key=natural):
        raise LayoutError("the experts are not numbered from 0 without a gap", where=listed(strays), help="some of them are missing")
    _check_whole({module: {part: found[module].get(part, set()) for part in wanted[module]} for module in found}, row.part_suffixes)
    shapes = {module: [tensors[f"{part}{first}"].shape for part in parts[: len(row.parts)]] for module, parts in wanted.items()}
    return [_site(row, config, module, _whole_shape(row, shapes[module], experts[module]), why) for module in found]


def _check_whole(modules: Mapping[str, Mapping[str, Collection[str]]], known: Sequence[str]) -> None:
    """Whatever holds the tensors of a fused module has the first of the `known` suffixes and no unknown one; and what differs
    by numbers only has the same ones.

    `modules`: fused module -> itself, or its parts -> suffixes that are there.
    """
    holders = {name: suffixes for parts in modules.values() for name, suffixes in parts.items()}
    if others := sorted((f"{name}{s}" for name, suffixes in holders.items() for s in suffixes if s not in known), key=natural):
        raise NotSupported(
            f"{len(others)} tensors belong to fused projections, and are neither weight nor bias: are these quantised?",
            where=listed(others),
            help="split the unquantised checkpoint, and quantise the result",
        )
    if bare := sorted((name for name, suffixes in holders.items() if known[0] not in suffixes), key=natural):
        raise LayoutError(
            f"{len(bare)} projections have no weight, though their siblings have one",
            where=listed(bare),
            help="the checkpoint is incomplete, or quantised under other names; fetch it again, or take the unquantised one",
        )
    siblings: dict[str, dict[str, Collection[str]]] = {}
    for module, parts in modules.items():
        siblings.setdefault(re.sub(r"\d+", "0", module), {}).update(parts)
    for alike in siblings.values():
        every = {suffix for suffixes in alike.values() for suffix in suffixes}
        if without := sorted((name for name, suffixes in alike.items() if set(suffixes) != every), key=natural):
            raise LayoutError(
                "some fused projections have a bias, and some have none",
                where=[f"without: {', '.join(listed(without))}"],
                help="the checkpoint is incomplete; fetch it again",
            )


def _by_type(config: Config, kinds: Collection[str], find: Callable[[Row, Config, str], list[Site]]) -> dict[str, Site]:
    """What `find` finds for the rows that the model types have: module -> site.

    A composite config names the type, and only one of its parts may have the sizes: an error counts when no section fits.
    """
    found: dict[str, Site] = {}
    for row in TABLE:
        matching = [s for s in sections(config) if row.kind in kinds and s.get("model_type") in row.model_types]
        errors, sites = [], []
        for section in matching:
            try:
                sites += find(row, section, f"model type {section['model_type']}")
            except LayoutError as error:
                errors.append(error)
        if errors and not sites:
            raise errors[-1]
        for site in sites:
            found.setdefault(site.module, site)
    return found


def _site(row: Row, config: Config, module: str, shape: Shape, why: str) -> Site:
    length = shape[row.axis] if row.axis < len(shape) else 0
    layout = row.layout(Place(config, module, length))
    return Site(row, module, layout, shape[0] if row.stacked else 0, str(config.get("model_type", "")), why)


def _whole_shape(row: Row, shapes: list[Shape], experts: int) -> Shape:
    """The shape of the fused weight, from those of one set of parts."""
    inner = [shape[::-1] if row.transposed else shape for shape in shapes]
    axis = row.axis - 1 if row.stacked else row.axis
    length = sum(shape[axis] if axis < len(shape) else 0 for shape in inner)
    fused = (*inner[0][:axis], length, *inner[0][axis + 1 :])
    return (experts, *fused) if row.stacked else fused


def _by_name(tensors: Tensors, module: str, suffix: str, names: Names) -> Site | None:
    """A module that no row knows, where its name has one layout only and the shapes say all sizes."""
    shape, leaf = tensors[f"{module}{suffix}"].shape, module.rpartition(".")[2]
    if len(shape) != 2:
        return None
    conv1d = leaf == "c_attn" and shape[1] == 3 * shape[0]
    if STYLES[leaf] != ("blocked",) and not conv1d:
        return None
    axis = 1 if conv1d else 0
    lengths = _lengths(tensors, module, shape[axis], shape[1 - axis], axis)
    if lengths is None:
        return None
    like = next((row for row in TABLE if row.kind == "qkv" and row.fused == leaf and row.axis == axis), None)
    parts = like.parts if like else QKV_PROJ
    row = Row("qkv", (), "", leaf, parts, lambda _: lengths, "", axis, IN_PROJ if suffix == "_weight" else LINEAR)
    return Site(row.called(names), module, lengths, 0, "", f"by its name and shape: what is called {leaf} is blocked")


def _lengths(tensors: Tensors, module: str, length: int, width: int, axis: int) -> Layout | None:
    """[q|k|v] where the output projection's width is q's length, or where all three are as wide as the input."""
    parent = module.rpartition(".")[0]
    outputs = [t.shape[1 - axis] for leaf in _OUTPUTS if (t := tensors.get(f"{parent}.{leaf}.weight")) and len(t.shape) == 2]
    q = outputs[0] if len(outputs) == 1 else width
    kv, rest = divmod(length - q, 2)
    if rest or kv <= 0 or kv > q or q % kv or (len(outputs) != 1 and kv != q):
        return None
    return Layout(1, (q // kv, 1, 1), kv)
