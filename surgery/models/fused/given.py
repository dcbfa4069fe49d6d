"""A layout that the user gives, for models that no row knows, or against what the row says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from ...errors import FormatError, LayoutError, NothingMatched, SurgeryError, listed, nearest, series
from ...names import compiled, natural
from ...step import FUSED, Option
from .detect import KINDS, Tensors, axis_of, fused_sites, habit, looks_fused, sizes_of, split_sites
from .layout import HEADS, KV_HEADS, Config, Layout, Place, divided, has, in_groups, number, sections
from .row import IN_PROJ, LINEAR, PARAMETER, Row, Site, Suffixes
from .tables import TABLE

LAYOUTS = ("blocked", "interleaved", "grouped")
KEYS: Mapping[str, tuple[str, ...]] = {"qkv": ("q", "k", "v"), "gate_up": ("gate", "up"), "kv": ("k", "v")}

Sizes = Callable[[Place], Sequence[int] | None]


@dataclass(frozen=True, slots=True)
class Given:
    """How fused modules lie, as a user says it. What is not said follows from the style, the shapes and config.json.

    `layout` is blocked, interleaved or grouped; `groups` and `slots` (units of each part in a group, in the order of
    the parts) say it in numbers; `order` lists the parts as they lie; `axis` is the fused axis of the weight;
    `pattern` is a regular expression for the whole names of the fused modules; `fused` is their last name, needed to
    fuse; `names` says what the parts are called. Raises SurgeryError where they contradict each other.
    """

    layout: Annotated[
        str,
        Option(
            "blocked, interleaved (head by head) or grouped.",
            "STYLE",
            (),
            FUSED,
            words=("blocked", "interleaved", "grouped"),
        ),
    ] = ""
    groups: Annotated[int, Option("How many groups follow each other; not for blocked.", "N", (), FUSED, least=1)] = 0
    slots: Annotated[
        tuple[int, ...], Option("Heads of each part in a group, as they lie: 8,1,1.", "N,N,…", (), FUSED)
    ] = ()
    order: Annotated[tuple[str, ...], Option("The parts as they lie; q,k,v if not given.", "PART,…", (), FUSED)] = ()
    axis: Annotated[
        int | None, Option("The fused axis of the weight: 0 is rows, 1 a Conv1D's columns.", "N", (), FUSED)
    ] = None
    pattern: Annotated[str, Option("Only the fused modules whose whole name matches.", "REGEX", (), FUSED)] = ""
    fused: Annotated[str, Option("Last name of the fused modules; needed to fuse by hand.", "NAME", (), FUSED)] = ""
    names: Annotated[
        Mapping[str, str], Option("Last names of the parts: q=query,k=key,v=value.", "PART=NAME,…", (), FUSED)
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (
            isinstance(self.slots, str)
            or isinstance(self.order, str)
            or not isinstance(self.names, Mapping)
            or not isinstance(self.groups, int)
        ):
            tip = (
                "slots and order are tuples, names a mapping, groups a number: Given(slots=(8, 1, 1), names={'q':"
                " 'query'})"
            )
            raise SurgeryError("a layout that is given has parts of the wrong type", help=tip)
        order, called = ",".join(self.order), list(self.names.values())
        rules: list[tuple[bool, str, str]] = [
            (
                self.layout not in ("", *LAYOUTS),
                f"there is no layout `{self.layout}`",
                f"{', '.join(LAYOUTS)} are known",
            ),
            (
                self.groups < 0,
                f"there cannot be {self.groups} groups",
                "leave it out where config.json says the head counts",
            ),
            (
                any(n < 1 for n in self.slots),
                "each part has at least one slot in a group",
                "give them as in --slots 8,1,1",
            ),
            ("" in self.order, f"a part in the order {order} has no name", "list the parts as they lie, such as q,k,v"),
            (
                len(set(self.order)) < len(self.order),
                f"the order {order} names a part twice",
                "name each part once, such as q,k,v",
            ),
            (
                bool(self.slots and self.order) and len(self.slots) != len(self.order),
                f"{len(self.slots)} slots for the {len(self.order)} parts {order}",
                "give one number for each part, in the order in which they lie",
            ),
            (
                self.axis is not None and self.axis < 0,
                f"there is no axis {self.axis}",
                "axes count from 0: rows are 0, columns 1",
            ),
            ("" in called, "a part has no name", "say names as in --names q=query,k=key,v=value"),
            (
                len(set(called)) < len(called),
                f"two parts would be called {series(called)}",
                "give each part a name of its own",
            ),
            (
                self.layout == "blocked" and self.groups > 1,
                f"blocked has one group, not {self.groups}",
                "--layout grouped has one group after another",
            ),
            (
                self.layout == "interleaved" and len(set(self.slots)) > 1,
                f"interleaved has as much of each part in turn, not {','.join(map(str, self.slots))}",
                "--layout grouped has groups with slots of its own",
            ),
        ]
        for wrong, what, tip in rules:
            if wrong:
                raise SurgeryError(what, help=tip)
        compiled(self.pattern)

    def said(self) -> dict[str, Any]:
        """What was said, as a recipe has it."""
        return as_said(self)

    @property
    def says_layout(self) -> bool:
        """Whether the table is overruled; else only names are given, or a choice of modules."""
        return bool(self.layout or self.groups or self.slots or self.order or self.axis is not None)

    def wants(self, module: str) -> bool:
        """Whether a module of this name is meant."""
        called = not self.fused or f".{module}".endswith(f".{self.fused}")
        return called and (not self.pattern or bool(compiled(self.pattern).fullmatch(module)))


def as_said(given: Given) -> dict[str, Any]:
    """What was said, for a history: `given_as(as_said(given)) == given`."""
    usual = Given()
    said = {one.name: value for one in fields(given) if (value := getattr(given, one.name)) != getattr(usual, one.name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}


def given_as(said: Any) -> Given:
    """What a history says. Raises FormatError where it makes no sense."""
    texts, lists = dict.fromkeys(("layout", "pattern", "fused"), str), dict.fromkeys(("slots", "order"), list)
    kinds: Mapping[str, type] = {**texts, **lists, "groups": int, "axis": int, "names": dict}
    fits = isinstance(said, Mapping) and all(type(value) is kinds.get(name) for name, value in said.items())
    inner = [*said.get("order", ()), *said.get("names", {}).values()] if fits else []
    if (
        not fits
        or not all(isinstance(one, str) for one in inner)
        or not all(type(one) is int for one in said.get("slots", ()))
    ):
        raise FormatError(
            f"the history has a layout that makes no sense: {said!r}", help="say it again with --layout and its like"
        )
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    return Given(**values)


def chosen(given: Given | None, sites: list[Site]) -> list[Site]:
    """Those of the sites that `given` means by `pattern` and `fused`. Raises NothingMatched where it means none."""
    found = [site for site in sites if not given or given.wants(site.module)]
    if given and sites and not found:
        said = f"whole name matches `{given.pattern}`" if given.pattern else f"last name is {given.fused}"
        tip = f"those are such as {sites[0].module}; --layout says the layout of others"
        raise NothingMatched(
            f"of the {len(sites)} fused modules whose layout is known, there is none whose {said}", help=tip
        )
    return found


def given_sites(given: Given, config: Config, tensors: Tensors, kinds: Collection[str] = KINDS) -> list[Site]:
    """The fused modules among `tensors`, in the layout that was given. Raises NothingMatched, LayoutError."""
    kind = _kind(given, kinds)
    sites: list[Site] = []
    for (leaf, suffixes), modules in _meant(given, kind, tensors).items():
        shape = tensors[f"{modules[0]}{suffixes[0][0]}"].shape
        if given.axis is not None and given.axis >= len(shape):
            raise LayoutError(
                f"there is no axis {given.axis}", where=[f"{modules[0]} is {shape}"], help="axes count from 0"
            )
        axis = axis_of(leaf, shape) if len(shape) == 2 else 0
        row = _row(given, kind, leaf, suffixes, config, axis, lambda called, axis: _by_output(tensors, called, axis))
        rule = row.fused_rule()
        mine = {n: t for n, t in tensors.items() if (m := rule.fullmatch(n)) and n.removesuffix(m["suffix"]) in modules}
        sites += fused_sites(row, config, mine, "as given")
    _check_alike(given, sites)
    return sorted(sites, key=lambda site: natural(site.module))


def given_split_sites(given: Given, config: Config, tensors: Tensors, kinds: Collection[str] = KINDS) -> list[Site]:
    """The places where the parts lie of modules that are to be fused as given. Raises NothingMatched, LayoutError."""
    if not given.fused:
        raise SurgeryError(
            "what is the fused module to be called?", help="say it with --fused NAME, such as --fused qkv_proj"
        )
    kind = _kind(given, kinds)
    axes = {row.axis for row in TABLE if row.kind == kind == "qkv" and row.fused == given.fused}
    if given.axis is None and not _of_type(kind, given.fused, config) and len(axes) > 1:
        tip = "--axis 0 is nn.Linear, whose weight is (out, in); --axis 1 is Conv1D, (in, out)"
        raise LayoutError(f"is {given.fused} fused along axis 0 or axis 1?", help=tip)
    suffixes = IN_PROJ if given.fused == "in_proj" else LINEAR
    row = _row(
        given,
        kind,
        given.fused,
        suffixes,
        config,
        0,
        lambda called, axis: _by_parts(tensors, given.fused, called, axis),
    )
    rule = row.part_rule()
    mine = {n: t for n, t in tensors.items() if (m := rule.fullmatch(n)) and given.wants(f"{m['parent']}{given.fused}")}
    if not mine:
        parts, at = ", ".join(row.parts.values()), f" where `{given.pattern}` says" if given.pattern else ""
        raise NothingMatched(
            f"no {parts} are here to be fused to {given.fused}{at}", help="say what the parts are called with --names"
        )
    return split_sites(row, config, mine, "as given")


def _kind(given: Given, kinds: Collection[str]) -> str:
    """What is fused: the parts in `order` say it, else the kinds that are asked for."""
    said = next((kind for kind, keys in KEYS.items() if set(keys) == set(given.order)), "")
    asked = [kind for kind in KEYS if kind in kinds]
    if not said and {"qkv", "gate_up"} <= {*asked}:
        tip = "use split-qkv or split-gate-up, or fuse-…; with split and fuse, say --kinds qkv or --kinds gate-up"
        raise SurgeryError("a layout that is given is of one kind of modules", help=tip)
    kind = said or next(iter(asked), "")
    if not kind:
        tip = "a layout of gate and up can: --axis is the fused axis of the stacked weight, and the parts stay stacked"
        raise SurgeryError("the layout of stacked experts cannot be given", help=tip)
    if not (given.layout or given.groups or given.slots):
        tip = "give --layout blocked, interleaved or grouped, or --groups and --slots"
        raise LayoutError(
            "the layout is not said", where=[f"the parts are {', '.join(given.order or KEYS[kind])}"], help=tip
        )
    return kind


def _meant(given: Given, kind: str, tensors: Tensors) -> dict[tuple[str, Suffixes], list[str]]:
    """The fused modules that are meant: (last name, suffixes) -> modules. Raises NothingMatched, LayoutError."""
    found: dict[tuple[str, Suffixes], list[str]] = {}
    for module, suffixes in _modules(given, kind, tensors):
        if given.wants(module):
            leaf = given.fused or module.rpartition(".")[2]
            found.setdefault((leaf, suffixes), []).append(module)
    if not found:
        raise _nothing(given, tensors)
    if len(found) > 1 and not given.pattern:
        alike = [f"{len(modules)} × {leaf}, such as {modules[0]}" for (leaf, _), modules in found.items()]
        raise LayoutError(
            "modules of more than one name look fused, and one layout was given",
            where=alike,
            help="say which with --fused NAME or --pattern REGEX, one after the other",
        )
    return found


def _modules(given: Given, kind: str, tensors: Tensors) -> list[tuple[str, Suffixes]]:
    """All modules with a weight, where a name or a pattern chooses among them; else those that by their name are
    fused.
    """
    if not (given.pattern or given.fused):
        if kind == "qkv":
            return [(module, IN_PROJ if suffix == "_weight" else LINEAR) for module, suffix in looks_fused(tensors)]
        leaves = {row.fused for row in TABLE if row.kind == kind}
        return [
            (m, LINEAR)
            for n in tensors
            if n.endswith(".weight") and (m := n.removesuffix(".weight")).rpartition(".")[2] in leaves
        ]
    found: list[tuple[str, Suffixes]] = []
    for name in tensors:
        if name.endswith(".weight"):
            found.append((name.removesuffix(".weight"), LINEAR))
        elif name.endswith("in_proj_weight"):
            found.append((name.removesuffix("_weight"), IN_PROJ))
        elif not name.endswith("bias"):
            found.append((name, PARAMETER))
    return found


def _of_type(kind: str, leaf: str, config: Config) -> Row | None:
    """The row of this name that the model type has."""
    types = {section.get("model_type") for section in sections(config)}
    return next((row for row in TABLE if row.kind == kind and row.fused == leaf and types & set(row.model_types)), None)


def _row(
    given: Given,
    kind: str,
    leaf: str,
    suffixes: Suffixes,
    config: Config,
    axis: int,
    sizes: Callable[[Mapping[str, str], int], Sizes],
) -> Row:
    """A row that says what is given; `axis` is the fused one where neither the user nor the model type's row says
    it.
    """
    mine = _of_type(kind, leaf, config)
    keys = given.order or KEYS[kind]
    if unknown := sorted(given.names.keys() - set(keys)):
        raise SurgeryError(
            f"there is no part {', '.join(unknown)}", help=f"the parts are {series(keys)}; --order says others"
        )
    if given.slots and len(given.slots) != len(keys):
        tip = "give one number for each part, in the order in which they lie; --order says which parts there are"
        raise SurgeryError(f"{len(given.slots)} slots for the {len(keys)} parts {series(keys)}", help=tip)
    known_as = mine.parts if mine else habit(kind, leaf)
    called = {key: given.names.get(key) or known_as.get(key) or f"{key}_proj" for key in keys}
    if len(set(called.values())) < len(called):
        raise SurgeryError(
            f"two parts would be called {', '.join(called.values())}", help="name the others with --names, too"
        )
    axis = given.axis if given.axis is not None else mine.axis if mine else axis
    around = sizes(called, axis)
    return Row(kind, (), "", leaf, called, lambda place: _layout(given, place, keys, around(place)), "", axis, suffixes)


def _layout(given: Given, place: Place, keys: Sequence[str], sizes: Sequence[int] | None) -> Layout:
    """The layout of one module. `sizes` are its parts' lengths, where the shapes around it tell them.

    What is not given comes from config.json, or else from `sizes`; where the two disagree, neither is believed.
    """
    groups = _groups(given, place, keys)
    slots = given.slots or _slots(given, place, keys, groups)
    if not slots and sizes:
        each = [divided(n, groups, "groups") for n in sizes]
        return in_groups(groups, *each)
    if not slots:
        raise LayoutError(
            f"neither config.json nor the shapes tell how long {series(keys)} are",
            where=[place.module],
            help=(
                f"say it with --slots, one number for each of {series(keys, ',')}: how many heads of each there are in"
                " a group"
            ),
        )
    if sizes and not given.slots and any(n * sum(slots) != m * sum(sizes) for n, m in zip(sizes, slots, strict=True)):
        said, seen = (":".join(map(str, numbers)) for numbers in (slots, sizes))
        raise LayoutError(
            f"this layout makes {series(keys)} as long as {said}, but by the projections around it they are {seen}",
            where=[place.module],
            help="say the heads of each part with --slots, or choose another --layout, --groups or --order",
        )
    unit, rest = divmod(place.length, groups * sum(slots))
    if rest or not unit:
        raise LayoutError(
            f"{place.length} entries are not a multiple of {groups} groups × {sum(slots)} slots",
            where=[place.module],
            help="other --groups or --slots are this module's, or another --axis",
        )
    return Layout(groups, tuple(slots), unit)


def _groups(given: Given, place: Place, keys: Sequence[str]) -> int:
    if given.groups or given.layout in ("", "blocked"):
        return given.groups or 1
    if {*keys} <= {*KEYS["qkv"]}:
        return _said(place, "--groups", *(HEADS if given.layout == "interleaved" else (*KV_HEADS, *HEADS)))
    if given.layout == "interleaved":  # entry by entry
        return divided(place.length, len(keys), "parts")
    raise LayoutError("how many groups are there?", where=[place.module], help="say it with --groups")


def _slots(given: Given, place: Place, keys: Sequence[str], groups: int) -> tuple[int, ...]:
    """Slots that the layout's name implies, with the head counts in config.json; none where these are missing."""
    if given.layout == "interleaved" or (not given.groups and {*keys} in ({*KEYS["gate_up"]}, {*KEYS["kv"]})):
        return (1,) * len(keys)
    if {*keys} != {*KEYS["qkv"]} or not any(has(section, *HEADS) for section in sections(place.config)):
        return ()
    heads, kv = (_said(place, "--slots", *fields) for fields in (HEADS, (*KV_HEADS, *HEADS)))
    if given.layout == "grouped":
        if heads % groups or kv % groups:
            what = f"{heads} heads of q and {kv} of k and v do not lie in {groups} groups"
            raise LayoutError(
                what, where=[place.module], help="leave --groups out where config.json is right, or say --slots, too"
            )
        return tuple(heads // groups if key == "q" else kv // groups for key in keys)
    return tuple(heads if key == "q" else kv for key in keys) if given.layout == "blocked" else ()


def _said(place: Place, option: str, *fields: str) -> int:
    """The number that config.json says, in one of its sections or alike in several."""
    found = sorted({number(section, *fields) for section in sections(place.config) if has(section, *fields)})
    if len(found) != 1:
        what = f"says {' and '.join(map(str, found))}" if found else "has none"
        raise LayoutError(
            f"config.json {what} for {series(fields)}", where=[place.module], help=f"say it with {option}"
        )
    return found[0]


def _by_output(tensors: Tensors, called: Mapping[str, str], axis: int) -> Sizes:
    """Lengths of q, k and v by the width of the output projection beside a fused weight."""

    def sizes(place: Place) -> Sequence[int] | None:
        tensor = next(
            (t for suffix in (".weight", "_weight", "") if (t := tensors.get(f"{place.module}{suffix}"))), None
        )
        if tensor is None or {*called} != {*KEYS["qkv"]} or len(tensor.shape) != 2 or axis > 1:
            return None
        found = sizes_of(place.config, tensors, place.module, tensor.shape, axis)
        return [found[key != "q"] for key in called] if found else None

    return sizes


def _by_parts(tensors: Tensors, leaf: str, called: Mapping[str, str], axis: int) -> Sizes:
    """Lengths of the parts, which are there."""

    def sizes(place: Place) -> Sequence[int] | None:
        shapes = [tensors[f"{place.module.removesuffix(leaf)}{part}.weight"].shape for part in called.values()]
        return [shape[axis] if axis < len(shape) else 0 for shape in shapes]

    return sizes


def _check_alike(given: Given, sites: Sequence[Site]) -> None:
    """Head counts from config.json are one tower's: modules of other lengths are another's."""
    found = {site.layout.length: site.module for site in sites}
    if (
        given.layout in ("interleaved", "grouped")
        and not given.groups
        and {*sites[0].row.parts} <= {*KEYS["qkv"]}
        and len(found) > 1
    ):
        raise LayoutError(
            "the fused modules are of different lengths, and config.json has one head count",
            where=listed([f"{module}: {length}" for length, module in found.items()]),
            help="say --groups for each with a --pattern of its own",
        )


def _nothing(given: Given, tensors: Tensors) -> NothingMatched:
    modules = sorted({re.sub(r"[._](weight|bias)$", "", name) for name in tensors}, key=natural)
    if not given.pattern:
        said = f"no module is called {given.fused}" if given.fused else "no module looks fused by its name"
        near = nearest(given.fused, {m.rpartition(".")[2] for m in modules}) if given.fused else []
        tip = (
            f"the nearest names are {', '.join(near)}"
            if near
            else "say which are with --pattern REGEX, such as '.*\\.attn\\.qkv'"
        )
        return NothingMatched(said, help=tip)
    rule = compiled(given.pattern)
    if any(rule.fullmatch(name) for name in tensors):
        tip = "it is matched with the names of modules: leave `\\.weight` out"
    else:
        near = [m for m in modules if rule.search(m)] or nearest(given.pattern.replace("\\", ""), modules) or modules
        tip = f"modules are such as {series(listed(near, 3))}"
    return NothingMatched(f"no module's whole name matches `{given.pattern}`", help=tip)
