"""A layout that the user gives, for models that no row knows, or against what the row says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import LayoutError, NothingMatched, SurgeryError, listed, nearest
from ..names import compiled
from .detect import Tensors, fused_sites, looks_fused, split_sites
from .layout import HEADS, KV_HEADS, Config, Layout, Place, divided, has, number
from .row import IN_PROJ, LINEAR, PARAMETER, QKV_PROJ, Row, Site, Suffixes
from .tables import TABLE

KEYS = ("q", "k", "v")


@dataclass(frozen=True, slots=True)
class Given:
    """How fused modules lie, as a user says it. What is not said follows from the style, the shapes and config.json.

    `layout` is blocked, interleaved or grouped; `groups` and `slots` (units of each part in a group, in the order of the parts)
    say it in numbers; `order` lists the parts as they lie; `pattern` is a regular expression for the whole names of the fused
    modules; `fused` is their last name, needed to fuse; `names` says what the parts are called.
    """

    layout: str = ""
    groups: int = 0
    slots: tuple[int, ...] = ()
    order: tuple[str, ...] = ()
    axis: int | None = None
    pattern: str = ""
    fused: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def says_layout(self) -> bool:
        """Whether the table is overruled, or only the names are given."""
        return bool(self.layout or self.groups or self.slots or self.order or self.axis is not None or self.pattern or self.fused)


def given_sites(given: Given, config: Config, tensors: Tensors) -> list[Site]:
    """The fused modules among `tensors`, in the layout that was given. Raises NothingMatched, LayoutError."""
    sites: list[Site] = []
    for leaf, suffixes in _leaves(given, tensors):
        row = _row(given, leaf, suffixes)
        sites += [s for s in fused_sites(row, config, tensors, "as given") if _wanted(given, s.module)]
    if not sites:
        raise _nothing(given, tensors)
    return sites


def given_split_sites(given: Given, config: Config, tensors: Tensors) -> list[Site]:
    """The places where the parts lie of modules that are to be fused as given. Raises NothingMatched, LayoutError."""
    if not given.fused:
        raise SurgeryError("what is the fused module to be called?", help="say it with --fused NAME, such as --fused qkv_proj")
    suffixes = IN_PROJ if given.fused == "in_proj" else LINEAR
    row = _row(given, given.fused, suffixes)
    sites = [s for s in split_sites(row, config, tensors, "as given") if _wanted(given, s.module)]
    if not sites:
        names = ", ".join(row.parts.values())
        raise NothingMatched(f"no {names} are here to be fused to {given.fused}", help="say what the parts are called with --names")
    return sites


def _leaves(given: Given, tensors: Tensors) -> list[tuple[str, Suffixes]]:
    """(last name, suffixes) of the fused modules that are meant."""
    found: dict[str, Suffixes] = {}
    if given.pattern:
        rule = compiled(given.pattern)
        for name in tensors:
            for suffixes in (LINEAR, IN_PROJ, PARAMETER):
                module = name.removesuffix(suffixes[0][0])
                if name.endswith(suffixes[0][0]) and rule.fullmatch(module):
                    found.setdefault(module.rpartition(".")[2], suffixes)
                    break
    elif given.fused:
        found[given.fused] = IN_PROJ if given.fused == "in_proj" else LINEAR
    else:
        for module, suffix in looks_fused(tensors):
            found[module.rpartition(".")[2]] = IN_PROJ if suffix == "_weight" else LINEAR
    return list(found.items())


def _row(given: Given, leaf: str, suffixes: Suffixes) -> Row:
    like = next((row for row in TABLE if row.fused == leaf and row.kind == "qkv"), None)
    parts = like.parts if like else QKV_PROJ
    keys = given.order or tuple(key for key in KEYS if key in parts) or tuple(parts)
    if given.order and sorted(given.order) != sorted(set(given.order)):
        raise SurgeryError(f"the order {','.join(given.order)} names a part twice", help="name each part once, such as q,k,v")
    names = given.names
    if unknown := sorted(names.keys() - set(keys)):
        raise SurgeryError(f"there is no part {', '.join(unknown)}", help=f"the parts are {', '.join(keys)}; --order says others")
    called = {key: names.get(key) or parts.get(key) or f"{key}_proj" for key in keys}
    axis = given.axis if given.axis is not None else (like.axis if like else 0)
    return Row("qkv", (), "", leaf, called, lambda place: _layout(given, place, keys), "", axis, suffixes)


def _layout(given: Given, place: Place, keys: Sequence[str]) -> Layout:
    """The numbers that are not given: heads from config.json, the unit from the length of the fused axis."""
    config, parts = place.config, len(keys)
    match given.layout:
        case "" if not (given.groups or given.slots):
            raise LayoutError(
                "the layout is not said",
                where=[place.module],
                help="give --layout blocked, interleaved or grouped, or --groups and --slots",
            )
        case "" | "blocked":
            groups, slots = given.groups or 1, given.slots or _heads(config, keys)
        case "interleaved":
            groups, slots = given.groups or number(config, *HEADS), given.slots or (1,) * parts
        case "grouped":
            groups = given.groups or number(config, *KV_HEADS)
            shared = divided(number(config, *HEADS), groups, "groups")
            slots = given.slots or tuple(shared if key == "q" else 1 for key in keys)
        case other:
            raise SurgeryError(f"there is no layout `{other}`", help="blocked, interleaved and grouped are known")
    if len(slots) != parts:
        raise SurgeryError(f"{len(slots)} slots for {parts} parts", help="give one number for each part, in the order in which they lie")
    units, rest = divmod(place.length, groups * sum(slots))
    if rest or not units:
        raise LayoutError(
            f"{place.length} entries are not a multiple of {groups} groups × {sum(slots)} slots",
            where=[place.module],
            help="other --groups or --slots are this module's, or another --axis",
        )
    return Layout(groups, tuple(slots), units)


def _heads(config: Config, keys: Sequence[str]) -> tuple[int, ...]:
    """Heads of q, k and v where config.json says that they differ; else equal parts."""
    if not (set(keys) == set(KEYS) and has(config, *HEADS) and has(config, *KV_HEADS)):
        return (1,) * len(keys)
    return tuple(number(config, *(HEADS if key == "q" else KV_HEADS)) for key in keys)


def _wanted(given: Given, module: str) -> bool:
    return not given.pattern or bool(compiled(given.pattern).fullmatch(module))


def _nothing(given: Given, tensors: Sequence[str] | Tensors) -> NothingMatched:
    modules = sorted({re.sub(r"[._](weight|bias)$", "", name) for name in tensors})
    if not given.pattern:
        return NothingMatched("no module looks fused by its name", help="say which are with --pattern REGEX, such as '.*\\.attn\\.qkv'")
    inside = [m for m in modules if compiled(given.pattern).search(m)]
    near = inside or nearest(given.pattern.replace("\\", ""), modules)
    return NothingMatched(
        f"no module's whole name matches `{given.pattern}`", help=f"modules are such as {', '.join(listed(near or modules, 3))}"
    )
