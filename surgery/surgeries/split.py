"""Split fused modules, and fuse them back: a row of the table, read in both directions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

from ..adapters.fused import fuse_adapter, split_adapter
from ..adapters.unwrapped import check_unwrapped
from ..checkpoint import Checkpoint
from ..errors import LayoutError, NothingMatched, NotSupported, PlanError, SurgeryError, listed, series
from ..files.peft import Adapter
from ..lazy.dropped import both
from ..lazy.tensor import Input, Tensor, Zeros, stored
from ..models.alike import alike
from ..models.fused.apply import Change, described, fuse_tensors, split_tensors
from ..models.fused.detect import KINDS, STYLES, candidates, choices, detect, detect_split, known_types, looks_fused
from ..models.fused.given import Given, chosen, given_sites, given_split_sites
from ..models.fused.layout import sections
from ..models.fused.row import Site
from ..models.fused.tables import TABLE
from ..models.names_v5 import in_memory, renames_of
from ..models.targets import targets_for
from ..quantization.fused_codes import Codes, codes_of, fuse_codes, split_codes
from ..quantization.fused_names import check_found, followed
from ..quantization.kept_whole import held_in
from ..quantization.quantised import NOTHING, Quantisation, quantised
from ..quantization.settle import decoded
from .header_ties import along, parted

ATTENTION = ("qkv", "kv")

_Target = TypeVar("_Target", Checkpoint, Adapter)


def split_parts(
    target: _Target, kinds: Collection[str] = KINDS, *, given: Given | None = None, base: Checkpoint | None = None
) -> _Target:
    """Each fused module of these kinds replaced by its parts: what `fused.split` promises."""
    if isinstance(target, Adapter):
        return split_adapter(target, _sites_of(target, base, kinds, given, fused=True))
    return along(target, lambda checkpoint: _split(checkpoint, kinds, given))


def _split(checkpoint: Checkpoint, kinds: Collection[str], given: Given | None) -> Checkpoint:
    held = held_in(checkpoint)
    seen = decoded(checkpoint, held)
    with _told_why(checkpoint, held):
        sites = fused_in(seen, kinds, given)
    if not sites:
        raise _nothing(seen, kinds)
    _check_called(given, sites)
    told = _contradicted(seen, sites, kinds) if given and given.says_layout else ()
    return _noted(split_at(checkpoint, sites, held), sites, told)


def fuse_parts(
    target: _Target, kinds: Collection[str] = KINDS, *, given: Given | None = None, base: Checkpoint | None = None
) -> _Target:
    """The inverse of `split_parts`: what `fused.fuse` promises."""
    if isinstance(target, Adapter):
        return fuse_adapter(target, _sites_of(target, base, kinds, given, fused=False))
    return along(target, lambda checkpoint: _fuse(checkpoint, kinds, given))


def _fuse(checkpoint: Checkpoint, kinds: Collection[str], given: Given | None) -> Checkpoint:
    held = held_in(checkpoint)
    seen = decoded(checkpoint, held)
    with _told_why(checkpoint, held):
        sites = split_in(seen, kinds, given)
    if not sites:
        raise _nothing_to_fuse(seen, kinds)
    _check_called(given, sites)
    return without_note(fuse_at(checkpoint, sites, held))


@contextmanager
def _told_why(checkpoint: Checkpoint, held: Quantisation) -> Iterator[None]:
    """Where codes are refused that nothing could read, raise what is wrong with them instead."""
    try:
        yield
    except NotSupported:
        if not held.weights:
            quantised(checkpoint)
        raise


def split_at(
    checkpoint: Checkpoint, sites: Sequence[Site], held: Quantisation = NOTHING, *, again: bool = True
) -> Checkpoint:
    """The checkpoint with these modules split, codes that are `held` as codes, and read `again`. Raises LayoutError,
    PlanError, NotSupported.
    """
    return _in_codes(checkpoint, sites, held, "split", split_tensors, split_codes, again=again)


def fuse_at(checkpoint: Checkpoint, sites: Sequence[Site], held: Quantisation = NOTHING) -> Checkpoint:
    """The checkpoint with these modules fused, codes that are `held` as codes. Raises LayoutError, PlanError,
    NotSupported.
    """
    return _in_codes(checkpoint, sites, held, "fuse", fuse_tensors, fuse_codes)


def _in_codes(
    checkpoint: Checkpoint,
    sites: Sequence[Site],
    held: Quantisation,
    verb: str,
    change: Callable[[Mapping[str, Tensor], Site], Change],
    coded: Callable[[Codes, Site, Change], Change],
    *,
    again: bool = True,
) -> Checkpoint:
    seen = decoded(checkpoint, held)
    with _located(seen), _located(checkpoint):
        changes = [change(seen.tensors, site) for site in sites]
        shapes = {name: tensor.shape for one in changes for name, tensor in one.made.items()}
        codes = codes_of(checkpoint, held)
        changes = [coded(codes, site, one) for site, one in zip(sites, changes, strict=True)]
        made = followed(_changed(checkpoint, verb, sites, changes), codes, sites, verb)
        if again:
            check_found(made, codes, sites, verb, shapes)
        return made


def fused_in(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, given: Given | None = None) -> list[Site]:
    """The fused modules of a checkpoint. Raises LayoutError, NotSupported."""
    with _located(checkpoint):
        if given and given.says_layout:
            return given_sites(given, checkpoint.config, checkpoint.tensors, kinds)
        return chosen(given, detect(checkpoint.config, checkpoint.tensors, kinds, _names(given, kinds)))


def split_in(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, given: Given | None = None) -> list[Site]:
    """The places of a checkpoint where the parts of fused modules lie. Raises LayoutError, NotSupported."""
    with _located(checkpoint):
        if given and given.says_layout:
            return given_split_sites(given, checkpoint.config, checkpoint.tensors, kinds)
        names, recorded = _names(given, kinds), _recorded(checkpoint, kinds)
        sites = detect_split(checkpoint.config, checkpoint.tensors, kinds, names)
        if set(KINDS) <= set(kinds):
            apart = detect_split(checkpoint.config, checkpoint.tensors, ("experts",), names)
            mine = {site.module for site in sites}
            sites += [
                s for s in apart if s.module not in mine and (s.row.fused, tuple(s.row.parts.values())) in recorded
            ]
        sites = chosen(given, sites)
        _check_recorded(checkpoint, sites, recorded)
        return sites


_Recorded = Mapping[tuple[str, tuple[str, ...]], set[str]]


def _recorded(checkpoint: Checkpoint, kinds: Collection[str]) -> _Recorded:
    """What surgery split before and did not fuse since: (fused, parts) -> the layouts."""
    recorded: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for step in checkpoint.history:
        for row in step.get("modules", ()) if step.get("surgery") in ("split", "fuse") else ():
            key = (row["fused"], tuple(row["parts"]))
            if step.get("surgery") == "fuse":
                recorded.pop(key, None)
            elif row["kind"] in kinds:
                recorded.setdefault(key, set()).add(row["layout"])
    return recorded


def _check_recorded(checkpoint: Checkpoint, sites: Sequence[Site], recorded: _Recorded) -> None:
    """What surgery split before is put together as it was taken apart. Raises LayoutError where the table says
    otherwise.
    """
    for (fused, parts), layouts in recorded.items():
        mine = [site for site in sites if site.row.fused == fused and tuple(site.row.parts.values()) == parts]
        if wrong := {str(site.layout) for site in mine} - layouts:
            raise LayoutError(
                f"{fused} was split as {' and '.join(sorted(layouts))}, and would be fused as"
                f" {' and '.join(sorted(wrong))}",
                where=[f"{checkpoint.path}: .surgery/manifest.json", f"{mine[0].module}: {mine[0].why}"],
                help=f"say the layout that it was split with: --fused {fused} and --layout, --groups, --slots",
            )
        leaves = {part.rpartition(".")[2] for part in parts}
        if not mine and any(name.rpartition(".")[0].rpartition(".")[2] in leaves for name in checkpoint.tensors):
            raise LayoutError(
                f"{fused} was split into {series(parts)}, which the model type does not know",
                where=[f"{checkpoint.path}: .surgery/manifest.json"],
                help=(
                    "say these names with --names, as at the split; with --fused and --layout, too, where these were"
                    " given"
                ),
            )


def _sites_of(
    adapter: Adapter, base: Checkpoint | None, kinds: Collection[str], given: Given | None, *, fused: bool
) -> list[Site]:
    """The modules that the adapter has tensors of, `fused` or not: of its base, or in the layout that was given."""
    if given and given.says_layout:
        find = given_sites if fused else given_split_sites
        return find(replace(given, axis=0), base.config if base else {}, _shapes(adapter), kinds)
    if base is None:
        tip = "pass the base, fused or split: --base MODEL; or say the layout with --layout"
        raise SurgeryError("the layout of an adapter's modules is its base's", where=[adapter.path], help=tip)
    base = parted(decoded(base, held_in(base)))
    check_unwrapped(adapter, names_of(base))
    sites = [*fused_in(base, kinds, given), *split_in(base, kinds, given)]
    loaded = in_memory_sites(base, sites)
    if mine := sites_held(adapter, sites, fused=fused) or sites_held(adapter, loaded, fused=fused):
        return mine
    state, one = ("fused", sites[0].module) if fused and sites else ("split", sites[0].parts[0] if sites else "")
    if sites_held(adapter, [*sites, *loaded], fused=not fused):
        what, tip = f"the adapter is already {'split' if fused else 'fused'}", "there is nothing to do"
    elif sites:
        what, tip = f"the adapter has nothing on what is {state} in the base", f"that is {one} and its like"
    else:
        what, tip = (
            f"the base has no fused {series(kinds, ' or ')}, and no parts of one",
            "pass the base that the adapter was trained on",
        )
    raise NothingMatched(what, where=[adapter.path, base.path], help=tip)


def names_of(checkpoint: Checkpoint) -> set[str]:
    """The base's tensors by their names in its files, and in memory."""
    renames = renames_of(checkpoint.config)
    return {called for name in checkpoint.tensors for called in (name, in_memory(name, renames))}


def in_memory_sites(base: Checkpoint, sites: Sequence[Site]) -> list[Site]:
    """The sites under the names that transformers gives them when it loads the files, which an adapter has."""
    renames = renames_of(base.config)
    return [replace(site, module=in_memory(f"{site.module}.weight", renames).removesuffix(".weight")) for site in sites]


def sites_held(adapter: Adapter, sites: Sequence[Site], *, fused: bool) -> list[Site]:
    """The sites of which the adapter holds the fused module, or some of the parts."""
    held = {*adapter.lora, *adapter.whole}

    def names(site: Site) -> set[str]:
        modules, suffixes = ([site.module], site.row.fused_suffixes) if fused else (site.parts, site.row.part_suffixes)
        return {*modules, *(f"{module}{suffix}" for module in modules for suffix in suffixes)}

    return [site for site in sites if held & names(site)]


def _shapes(adapter: Adapter) -> dict[str, Tensor]:
    """A weight of the right shape for each module that the adapter has LoRA on, where no base is at hand."""
    pairs = {m: (parts.get("lora_A.weight"), parts.get("lora_B.weight")) for m, parts in adapter.lora.items()}
    return {f"{m}.weight": Zeros(b.dtype, (b.shape[0], a.shape[-1])) for m, (a, b) in pairs.items() if a and b}


def _names(given: Given | None, kinds: Collection[str]) -> Mapping[str, str]:
    names = given.names if given else {}
    known = {key for row in TABLE if row.kind in kinds for key in row.parts}
    if strange := sorted(set(kinds) - set(KINDS)):
        raise SurgeryError(f"there is no kind {', '.join(strange)}", help=f"kinds are {', '.join(KINDS)}")
    if unknown := sorted(names.keys() - known):
        raise SurgeryError(f"there is no part {', '.join(unknown)}", help=f"parts are {', '.join(sorted(known))}")
    return names


def _check_called(given: Given | None, sites: Sequence[Site]) -> None:
    """Each name that was given is a part of something here."""
    keys = {key for site in sites for key in site.row.parts}
    if sites and given and (idle := sorted(given.names.keys() - keys)):
        raise SurgeryError(f"nothing here has a part {', '.join(idle)}", help=f"the parts are {series(sorted(keys))}")


_ALONE = "config.json still names a class that does not load these names; "


def _contradicted(checkpoint: Checkpoint, sites: Sequence[Site], kinds: Collection[str]) -> tuple[str, ...]:
    """A note where the layout that was given is not the one that the table knows."""
    try:
        known = {site.module: site for site in detect(checkpoint.config, checkpoint.tensors, kinds)}
    except SurgeryError:
        return ()
    for site in sites:
        if (own := known.get(site.module)) and own.layout != site.layout:
            return (f"{site.module} was split as {site.layout}, as given; by {own.why} it is {own.layout}",)
    return ()


def _noted(checkpoint: Checkpoint, sites: Sequence[Site], told: Sequence[str]) -> Checkpoint:
    """With a word on the classes that load the result, as far as the tables know them."""
    known = not {section.get("model_type") for section in sections(checkpoint.config)}.isdisjoint(known_types())
    typed = [site.row for site in sites if site.row.model_types or known]
    ways = [f"surgery convert --as {name}" for name in targets_for(checkpoint.config)]
    notes = list(without_note(checkpoint).notes)
    notes += told
    if typed and all(row.loads or row.asked for row in typed):
        notes.append("the model's own class loads these names, too")
    elif typed:
        notes.append(
            f"{_ALONE}{' or '.join(ways)} writes a checkpoint that one does"
            if ways
            else f"{_ALONE}fuse is the way back"
        )
    return replace(checkpoint, notes=tuple(notes))


def without_note(checkpoint: Checkpoint) -> Checkpoint:
    """Without what `split` said of its result, which is another one now."""
    return replace(checkpoint, notes=tuple(note for note in checkpoint.notes if not note.startswith(_ALONE)))


@contextmanager
def _located(checkpoint: Checkpoint) -> Iterator[None]:
    """Say of each tensor that an error names in which file it is."""
    try:
        yield
    except SurgeryError as error:
        shards = checkpoint.weight_map
        where = [f"{shards[line]}: {line}" if line in shards else line for line in error.where]
        raise type(error)(error.what, where=where, help=error.help) from error


def _changed(checkpoint: Checkpoint, verb: str, sites: Sequence[Site], changes: Sequence[Change]) -> Checkpoint:
    """The checkpoint after all changes. Raises PlanError where a name is taken."""
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for change in changes:
        for name in dict.fromkeys((*change.used, *change.dropped)):
            del tensors[name], weight_map[name]
    for change in changes:
        if taken := [name for name in change.made if name in tensors]:
            what = (
                "a part would take the name of another tensor"
                if verb == "split"
                else "the fused tensor would take the name of another"
            )
            where = listed([f"{change.source[name]} -> {name}" for name in taken])
            raise PlanError(what, where=where, help="rename or drop that one first")
        tensors |= change.made
        weight_map |= {name: checkpoint.weight_map[source] for name, source in change.source.items()}
    gone = {name: checkpoint.tensors[name] for change in changes for name in change.dropped}
    step = {"surgery": verb, "modules": described(sites)}
    made = checkpoint.with_step(
        step,
        tensors=tensors,
        weight_map=weight_map,
        dropped=both(checkpoint.dropped, gone),
        inputs=_partly(checkpoint, [name for change in changes for name in change.shared]),
    )
    edits = {key: values[verb == "split"] for site in sites for key, values in site.row.config.items()}
    return made.with_config({**made.config, **edits}) if edits else made


def _partly(checkpoint: Checkpoint, names: Sequence[str]) -> tuple[Input, ...]:
    """What was opened, where elements of these tensors come more than once, or not all."""
    leaves = {leaf for name in names for leaf in stored(checkpoint.tensors[name])}
    return tuple(
        replace(one, partly=one.partly | {name for name, tensor in one.tensors.items() if tensor in leaves})
        if leaves
        else one
        for one in checkpoint.inputs
    )


def _nothing(checkpoint: Checkpoint, kinds: Collection[str]) -> NothingMatched | LayoutError:
    """Why nothing was split: already split, an unknown layout, or nothing to split."""
    kind = checkpoint.config.get("model_type")
    mine = [row for row in TABLE if row.kind in kinds and kind in row.model_types]
    looks = looks_fused(checkpoint.tensors) if "qkv" in kinds else []
    if there := detect_split(checkpoint.config, checkpoint.tensors, kinds):
        parts = dict.fromkeys(leaf for site in there for leaf in site.row.parts.values())
        tip = f"it has {series(parts)}; there is nothing to do"
        return NothingMatched("the checkpoint is already split", where=[checkpoint.path], help=tip)
    if looks:
        return _ambiguous(checkpoint, looks)
    others = sorted({site.row.kind for site in detect(checkpoint.config, checkpoint.tensors)})
    known = f"{_near(kind, kinds)}; --fused NAME with --layout says others"
    if mine and mine[0].asked and not set(KINDS) <= set(kinds):
        what, tip = (
            f"the experts of model type `{kind}` are stacked in memory only: these files have none",
            "there is nothing to do",
        )
    elif others:
        what, tip = f"no fused {' or '.join(kinds)} is here", f"what is fused here is {', '.join(others)}"
    elif mine and not mine[0].asked:
        names = f"{mine[0].parent}\\.{re.escape(mine[0].fused)}"
        what, tip = (
            f"no fused {mine[0].kind} of model type `{kind}` is here",
            f"its names would match {names}; what is apart needs no split",
        )
    elif not checkpoint.config:
        what, tip = (
            "without config.json the layout of fused modules is not known",
            "put the model's config.json beside the shards",
        )
    else:
        what, tip = f"nothing is fused here: model type `{kind}` has its parts apart", known
    return NothingMatched(what, where=[checkpoint.path], help=tip)


def _near(kind: object, kinds: Collection[str]) -> str:
    """How many model types are known, and which look like this one."""
    known = known_types(kinds)
    return f"{len(known)} model types are known to have such modules{alike(kind, known)}"


def _ambiguous(checkpoint: Checkpoint, looks: Sequence[tuple[str, str]]) -> LayoutError:
    """Modules that look fused, in a layout that neither config.json nor the shapes tell: the candidates, and how to
    choose.
    """
    kind = checkpoint.config.get("model_type")
    module, suffix = looks[0]
    leaf, found = module.rpartition(".")[2], candidates(checkpoint.config, checkpoint.tensors, module, suffix)
    mine = next((row for row in TABLE if row.kind == "qkv" and kind in row.model_types), None)
    if mine:
        why = f"what model type `{kind}` has fused is called {mine.fused}, and is not here"
    else:
        why = (
            f"no layout is known for model type `{kind}`"
            if kind
            else "without a model type in config.json the layout is not known"
        )
    first = "" if kind else "put the model's config.json beside the shards, or "
    first = "is this another model's config.json? if not, " if mine else first
    fit = "more than one would fit" if len(found) > 1 else "the shapes do not tell the sizes of"
    could = " or ".join(choices(checkpoint.config, checkpoint.tensors, module, suffix))
    return LayoutError(
        f"{why}, and {fit} what is called {leaf}",
        where=[checkpoint.path, *listed([m for m, _ in looks]), *([f"{leaf} could be {could}"] if could else [])],
        help=(
            f"{first}say which with --layout {series(found or STYLES[leaf], ' or ')} (and --groups, --slots where head"
            " counts are missing), as the modeling code has it; a wrong layout loads without an error and computes"
            " nonsense"
        ),
    )


def _nothing_to_fuse(checkpoint: Checkpoint, kinds: Collection[str]) -> NothingMatched:
    """Why nothing was fused: already fused, or no family that is."""
    kind = checkpoint.config.get("model_type")
    if detect(checkpoint.config, checkpoint.tensors, kinds):
        return NothingMatched("the checkpoint is already fused", where=[checkpoint.path], help="there is nothing to do")
    if set(KINDS) <= set(kinds) and detect_split(checkpoint.config, checkpoint.tensors, ("experts",)):
        what = (
            f"nothing was split here: the files of model type `{kind}` have experts apart, and its class fuses them in"
            " memory"
        )
        return NothingMatched(
            what, where=[checkpoint.path], help="surgery fuse-experts makes what the class holds; it loads that, too"
        )
    fused = " or ".join(kinds)
    return NothingMatched(
        f"no parts of a fused {fused} of model type `{kind}` are here",
        where=[checkpoint.path],
        help=f"{_near(kind, kinds)}; --fused NAME with --layout says another",
    )
