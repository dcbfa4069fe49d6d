"""Find the fused modules of a checkpoint: by the model types in config.json, else by names and shapes where these
leave one layout. Never by a guess: a wrong layout loads without an error and computes nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from ...errors import LayoutError, NotSupported, listed
from ...lazy.tensor import Shape, Tensor
from ...names import natural
from .layout import HEADS, KV_HEADS, Config, Layout, Place, has, number, sections
from .row import IN_PROJ, LINEAR, QKV_PROJ, Row, Site
from .tables import TABLE

KINDS = ("qkv", "kv", "experts", "gate_up")

Tensors = Mapping[str, Tensor]
Names = Mapping[str, str]
NO_NAMES: Names = {}

# Last names under which fused projections of attention are known, and the layouts that they have in one family or
# another.
STYLES: Mapping[str, tuple[str, ...]] = {
    "qkv": ("blocked", "interleaved", "grouped"),
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
    "vision_expert_query_key_value": ("blocked",),
    "language_expert_query_key_value": ("blocked",),
}
# What ends the names of the tensors that quantised weights are stored in.
QUANTISED = {"_blocks": "MXFP4", "_scales": "MXFP4", "_scale_inv": "FP8"}
# Names of the projection that follows attention: as many columns as q has rows.
_OUTPUTS = (
    "o_proj",
    "out_proj",
    "dense",
    "proj",
    "c_proj",
    "wo",
    "out",
    "linear_proj",
    "vision_expert_dense",
    "language_expert_dense",
)
MOST_OF_NOTHING = 10_000  # experts in a stack without elements: it takes no bytes to claim any number


def detect(config: Config, tensors: Tensors, kinds: Collection[str] = KINDS, names: Names = NO_NAMES) -> list[Site]:
    """The fused modules among `tensors`, in natural order; `names` are other names for their parts (key -> last name).

    Raises LayoutError where they contradict their row.
    """
    rows = [row for row in TABLE if row.kind in kinds]
    found = _by_type(config, rows, lambda row, section, why: fused_sites(row.called(names), section, tensors, why))
    if "qkv" in kinds:
        types = {section.get("model_type") for section in sections(config)}
        # the row says which of these are fused, and which are not
        known = {row.fused.rpartition(".")[2] for row in TABLE if types & set(row.model_types)}
        looks = [
            (m, suffix) for m, suffix in looks_fused(tensors) if m not in found and m.rpartition(".")[2] not in known
        ]
        named = {m: site for m, suffix in looks if (site := _by_name(config, tensors, m, suffix, names))}
        for row in {site.row.fused: site.row for site in named.values()}.values():
            _check_whole({m: {m: s} for m, s in _fused_modules(row, tensors).items() if m in named}, row.fused_suffixes)
        found |= named
    return sorted(found.values(), key=lambda site: natural(site.module))


def detect_split(
    config: Config, tensors: Tensors, kinds: Collection[str] = KINDS, names: Names = NO_NAMES
) -> list[Site]:
    """The places of fused modules whose parts are among `tensors`. Raises LayoutError where parts are missing or do
    not fit.
    """
    every = set(KINDS) <= set(kinds)
    rows = [row for row in TABLE if row.kind in kinds and not (row.asked and every)]
    found = _by_type(config, rows, lambda row, section, why: split_sites(row.called(names), section, tensors, why))
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
    every = set(KINDS) <= set(kinds)
    return sorted(
        {kind for row in TABLE if row.kind in kinds and not (row.asked and every) for kind in row.model_types}
    )


def fused_sites(row: Row, config: Config, tensors: Tensors, why: str) -> list[Site]:
    """Where `row` applies to fused modules among `tensors`. Raises LayoutError where one is not whole."""
    first, modules = row.tensors[0][0], _fused_modules(row, tensors)
    _check_whole({module: {module: suffixes} for module, suffixes in modules.items()}, row.fused_suffixes)
    _check_beside(row, modules, tensors)
    sites = [_site(row, config, module, tensors[f"{module}{first}"].shape, why, there=True) for module in modules]
    return [site for site in sites if site]


def _fused_modules(row: Row, tensors: Tensors) -> dict[str, set[str]]:
    """The modules whose names are the row's -> the suffixes that they have."""
    rule = row.fused_rule()
    modules: dict[str, set[str]] = {}
    for name in tensors:
        if match := rule.fullmatch(name):
            modules.setdefault(name.removesuffix(match["suffix"]), set()).add(match["suffix"])
    return modules


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
    if strays := sorted(
        {part for module, parts in found.items() for part in parts} - {p for w in wanted.values() for p in w},
        key=natural,
    ):
        raise LayoutError(
            "the experts are not numbered from 0 without a gap", where=listed(strays), help="some of them are missing"
        )
    _check_whole(
        {module: {part: found[module].get(part, set()) for part in wanted[module]} for module in found},
        row.part_suffixes,
    )
    _check_counts(experts)
    shapes = {
        module: [tensors[f"{part}{first}"].shape for part in parts[: len(row.parts)]]
        for module, parts in wanted.items()
    }
    sites = [
        _site(row, config, module, _whole_shape(row, shapes[module], experts[module]), why, there=False)
        for module in found
    ]
    return [site for site in sites if site]


def _check_counts(experts: Mapping[str, int]) -> None:
    """What differs by its layer's number only has as many experts. `experts`: module -> how many."""
    counts: dict[str, dict[int, str]] = {}
    for module, count in experts.items():
        counts.setdefault(re.sub(r"\d+", "0", module), {}).setdefault(count, module)
    for alike in counts.values():
        if len(alike) > 1:
            (less, where), (more, _) = sorted(alike.items())[:2]
            what = f"there are {less} experts of one layer, and {more} of another"
            raise LayoutError(what, where=[where], help="some of them are missing")


def _check_whole(modules: Mapping[str, Mapping[str, Collection[str]]], known: Sequence[str]) -> None:
    """Whatever holds the tensors of a fused module has the first of the `known` suffixes and no unknown one; and
    what differs by numbers only has the same ones.

    `modules`: fused module -> itself, or its parts -> suffixes that are there.
    """
    holders = {name: suffixes for parts in modules.values() for name, suffixes in parts.items()}
    if others := sorted(
        (f"{name}{s}" for name, suffixes in holders.items() for s in suffixes if s not in known), key=natural
    ):
        kinds = sorted({kind for suffix, kind in QUANTISED.items() if any(name.endswith(suffix) for name in others)})
        raise NotSupported(
            f"{len(others)} tensors belong to fused projections, and are neither weight nor bias: "
            + (f"these are quantised ({', '.join(kinds)})" if kinds else "are these quantised?"),
            where=listed(others),
            help="take the unquantised checkpoint, and quantise the result",
        )
    if bare := sorted((name for name, suffixes in holders.items() if known[0] not in suffixes), key=natural):
        raise LayoutError(
            f"{len(bare)} projections have no weight, though their siblings have one",
            where=listed(bare),
            help=(
                "the checkpoint is incomplete, or quantised under other names; fetch it again, or take the"
                " unquantised one"
            ),
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


def _check_beside(row: Row, modules: Iterable[str], tensors: Tensors) -> None:
    """What lies beside a fused module is all there, or none of it."""
    beside = {one.name for one in row.beside}
    for parent in (module.removesuffix(row.fused) for module in modules):
        there = {name for name in beside if f"{parent}{name}" in tensors}
        if there and there != beside:
            raise LayoutError(
                f"{' and '.join(sorted(there))} without {' and '.join(sorted(beside - there))}",
                where=[f"{parent}{name}" for name in sorted(there)],
                help="the checkpoint is incomplete; fetch it again",
            )


def _by_type(config: Config, rows: Sequence[Row], find: Callable[[Row, Config, str], list[Site]]) -> dict[str, Site]:
    """What `find` finds for those of the rows that the model types have: module -> site.

    A composite config names the type, and only one of its parts may have the sizes: an error counts when no section
    fits.
    """
    found: dict[str, Site] = {}
    for row in rows:
        matching = [s for s in sections(config) if s.get("model_type") in row.model_types]
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


def _site(row: Row, config: Config, module: str, shape: Shape, why: str, *, there: bool) -> Site | None:
    if row.only and not row.only(config, shape, there):
        return None
    if row.stacked and 0 in shape and max(shape) > MOST_OF_NOTHING:
        raise LayoutError(f"{shape} are experts without an element", where=[module], help="drop the empty tensor")
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


def candidates(config: Config, tensors: Tensors, module: str, suffix: str = ".weight") -> dict[str, Layout | None]:
    """The layouts that the module's name allows and its shape does not exclude: style -> layout of [q|k|v].

    None stands where the output projection or the head counts in config.json do not tell the sizes.
    """
    shape, leaf = tensors[f"{module}{suffix}"].shape, module.rpartition(".")[2]
    if len(shape) != 2:
        return {}
    axis = axis_of(leaf, shape)
    conv1d = leaf == "c_attn" and shape[1] == 3 * shape[0]  # a Conv1D is (in, out): GPT-2's, and always blocked
    sizes = sizes_of(config, tensors, module, shape, axis)
    heads = _agreed(config, *HEADS)
    dim = sizes[0] // heads if sizes and heads and not sizes[0] % heads else 0
    found: dict[str, Layout | None] = {}
    for style in ("blocked",) if conv1d else STYLES[leaf]:
        if sizes is None:
            found[style] = None
        elif (q := sizes[0]) == (kv := sizes[1]) and style == "grouped" and "interleaved" in STYLES[leaf]:
            continue  # one group for each head: the same thing
        elif style == "blocked":
            found[style] = Layout(1, (q // kv, 1, 1), kv)
        elif style == "grouped" or q == kv:
            found[style] = Layout(kv // dim, (q // kv, 1, 1), dim) if dim and not kv % dim else None
    return found


def choices(config: Config, tensors: Tensors, module: str, suffix: str = ".weight") -> list[str]:
    """What `candidates` found, for a reader: `blocked 1 × [4096|1024|1024]`, or the bare style where sizes are not
    known.
    """
    found = candidates(config, tensors, module, suffix)
    return [f"{style} {layout}" if layout else style for style, layout in found.items()]


def axis_of(leaf: str, shape: Shape) -> int:
    """The fused axis of a module that no row knows: rows, but for a Conv1D by the name of GPT-2's."""
    return 1 if leaf == "c_attn" and shape[1] > shape[0] else 0


def sizes_of(config: Config, tensors: Tensors, module: str, shape: Shape, axis: int) -> tuple[int, int] | None:
    """Lengths of q, and of k and v each: q is as long as the output projection is wide, or else all three as the input.

    None where config.json says that q has more heads than k and v, and these lengths do not.
    """
    parent, length, width = module.rpartition(".")[0], shape[axis], shape[1 - axis]
    outputs = {
        t.shape[1 - axis] for leaf in _OUTPUTS if (t := tensors.get(f"{parent}.{leaf}.weight")) and len(t.shape) == 2
    }
    q = outputs.pop() if (told := len(outputs) == 1) else width
    kv, rest = divmod(length - q, 2)
    if rest or not 0 < kv <= q or q % kv or (kv != q and not told):
        return None
    heads, kv_heads = _agreed(config, *HEADS), _agreed(config, *KV_HEADS)
    return None if heads and kv_heads and not told and q * kv_heads != kv * heads else (q, kv)


def _agreed(config: Config, *fields: str) -> int:
    """The number that config.json says, in one of its sections or alike in several; else 0."""
    said = {number(section, *fields) for section in sections(config) if has(section, *fields)}
    return said.pop() if len(said) == 1 else 0


def _by_name(config: Config, tensors: Tensors, module: str, suffix: str, names: Names) -> Site | None:
    """A module that no row knows, where its name and its shape leave one layout."""
    layouts = set(candidates(config, tensors, module, suffix).values())
    layout = layouts.pop() if len(layouts) == 1 else None
    if layout is None:
        return None
    leaf = module.rpartition(".")[2]
    axis = axis_of(leaf, tensors[f"{module}{suffix}"].shape)
    parts = {key: habit("qkv", leaf).get(key, name) for key, name in QKV_PROJ.items()}
    row = Row("qkv", (), "", leaf, parts, lambda _: layout, "", axis, IN_PROJ if suffix == "_weight" else LINEAR)
    return Site(row.called(names), module, layout, 0, "", "by its name and shape, which leave one layout")


def habit(kind: str, leaf: str) -> Mapping[str, str]:
    """What all families with a fused module of this name call its parts; nothing where they differ."""
    found = [row.parts for row in TABLE if row.kind == kind and row.fused == leaf]
    return found[0] if found and all(parts == found[0] for parts in found) else {}
