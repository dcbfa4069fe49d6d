"""Adapters across a fusion: on parts of what the base stores fused, or fused on what the base stores apart.

How the base's fused modules lie follows from the tables, and, for those that a user speaks of, from what is `given`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...adapters.fused import split_adapter
from ...adapters.methods import method_of
from ...checkpoint import Checkpoint
from ...errors import LayoutError, NothingMatched, SurgeryError, listed
from ...files.peft import Adapter
from ...models.fused.detect import KINDS, STYLES
from ...models.fused.given import KEYS, LAYOUTS, Given
from ...models.fused.row import Site
from ...models.fused.tables import TABLE
from ...names import natural
from ..split import fused_in, sites_held, split_in
from .other_naming import parts_held, wholes_held

EXPERTS = ("experts",)
AS_GIVEN = "as given"  # why a site lies as it does
_PARTS = {part.rpartition(".")[2] for row in TABLE for part in row.parts.values()}
# Last names of fused modules that no part has, and the layouts that they may have.
_FUSED = {
    n: s
    for n, s in ({row.fused: LAYOUTS for row in TABLE if row.kind in KEYS} | dict(STYLES)).items()
    if n not in _PARTS
}


def across(
    checkpoint: Checkpoint, adapter: Adapter, given: Given | None, *, whole: bool = False
) -> tuple[Adapter, list[Site], str]:
    """An adapter that fits a base which stores fused what it was trained on apart, or apart what it was trained on
    fused: `whole`, if it is not to be split where others cannot be.

    (the adapter, split where the base is; the modules of the base to be split for it and fused again, or fused and
    split again; a note on it)
    """
    wanted = {*(f"{module}.weight" for module in adapter.lora), *adapter.whole}
    if wanted <= checkpoint.tensors.keys():
        return adapter, [], ""
    if held := wholes_held(checkpoint, adapter):
        return adapter, held, f"merged into what the parts of {held[0].row.fused} are together, {held[0].why}"
    if held := parts_held(checkpoint, adapter):
        return adapter, held, f"merged into the rows of {held[0].row.fused}, {held[0].why}"
    if held := sites_held(adapter, apart_here(checkpoint, given), fused=True):
        note = (
            f"the adapter was trained on {held[0].row.fused}, which the base stores apart: its rows were split with it"
        )
        if whole or method_of(adapter):  # of which no part is an adapter: the base is fused for it, and split again
            return adapter, held, note + _as_given(held)
        return split_adapter(adapter, held), [], note + _as_given(held)
    if held := sites_held(adapter, fused_here(checkpoint, given), fused=False) or sites_held(
        adapter, fused_in(checkpoint, EXPERTS), fused=False
    ):
        parts = [
            part for site in held for part in site.parts if part in adapter.lora or f"{part}.weight" in adapter.whole
        ]
        leaves = ", ".join(dict.fromkeys(part.rpartition(".")[2] for part in parts))
        _check_rows(adapter, held)
        note = (
            f"the adapter was trained on {leaves}, which the base stores as {held[0].row.fused}: merged into its rows"
        )
        return adapter, held, note + _as_given(held)
    return adapter, [], ""


def fused_here(checkpoint: Checkpoint, given: Given | None) -> list[Site]:
    """The fused modules of the base. Raises LayoutError, NotSupported, and NothingMatched where nothing is what is
    given.
    """
    mine, _ = _meant(checkpoint, given)
    gone = {f"{site.module}{suffix}" for site in mine for suffix in site.row.fused_suffixes}
    return mine + fused_in(_without(checkpoint, gone))


def apart_here(checkpoint: Checkpoint, given: Given | None) -> list[Site]:
    """The places of the base where parts of fused modules lie. Raises LayoutError, NotSupported, and NothingMatched."""
    _, mine = _meant(checkpoint, given)
    gone = {f"{part}{suffix}" for site in mine for part in site.parts for suffix in site.row.part_suffixes}
    return mine + split_in(_without(checkpoint, gone))


def check_given(given: Given | None) -> None:
    """Raise SurgeryError for a choice of modules of which nothing is said."""
    if given and not given.says_layout and not given.names:
        tip = (
            "say how they lie with --layout, --groups, --slots, or what their parts are called with --names; in Python"
            " given=Given(…)"
        )
        raise SurgeryError("of the fused modules that are chosen nothing is said", help=tip)


def check_crossed(checkpoint: Checkpoint, given: Given | None, notes: Sequence[str]) -> None:
    """Raise NothingMatched where a layout was given, and no adapter is across a fusion: what is said would count for
    nothing.
    """
    if given and not any(notes):
        tip = "leave --layout and its like out (in Python given=): the adapters are on modules as the base stores them"
        raise NothingMatched("a layout was given, and no adapter needs one", where=[checkpoint.path], help=tip)


def how_to_say(checkpoint: Checkpoint, lost: Sequence[str]) -> str:
    """The options that would place these modules, where by their names they are parts of a fused one, or fused; else
    nothing.
    """
    here = sorted({name.rpartition(".")[0] for name in checkpoint.tensors}, key=natural)
    parents, names = {module.rpartition(".")[0] for module in lost}, {module.rpartition(".")[2] for module in lost}
    fused = next((m for m in here if m.rpartition(".")[0] in parents and m.rpartition(".")[2] in _FUSED), "")
    leaf = fused.rpartition(".")[2] or next(iter(sorted(names & _FUSED.keys())), "")
    if not leaf:
        return ""
    options = (
        f"--fused {leaf} --layout {' or '.join(_FUSED[leaf])} (and --groups, --slots where head counts are missing)"
    )
    python = (
        "in Python given=Given(…), as the modeling code has it; a wrong layout merges without an error and computes"
        " nonsense"
    )
    if fused:
        return f"if the base stores them fused, in {fused}, say how that lies: {options}, {python}"
    return f"if the base stores the parts of {leaf}, say how they lie in it: {options}, and their --names; {python}"


def _meant(checkpoint: Checkpoint, given: Given | None) -> tuple[list[Site], list[Site]]:
    """What is given: (fused modules of the base, or else the places of parts)."""
    if given is None:
        return [], []
    kinds = (_kind(given),) if given.says_layout else KINDS
    try:
        if found := fused_in(checkpoint, kinds, given):
            return found, []
    except NothingMatched as error:
        none = error
    else:
        none = NothingMatched(
            "nothing is fused here whose layout is known", help="say how it lies with --fused NAME and --layout"
        )
    if given.says_layout and not given.fused:
        tip = f"{none.help}; where the base stores the parts of a fused module, say with --fused what that is called"
        raise NothingMatched(none.what, where=[checkpoint.path, *none.where], help=tip)
    try:
        if found := split_in(checkpoint, kinds, given):
            return [], found
    except NothingMatched as error:
        raise NothingMatched(
            none.what, where=[checkpoint.path, error.what], help=f"{none.help}; {error.help}"
        ) from error
    raise NothingMatched(none.what, where=[checkpoint.path], help=none.help)


def _kind(given: Given) -> str:
    """What kind of modules is given: its parts say it, or the name; else those of attention."""
    keys = {*(given.order or given.names)}
    by_parts = [kind for kind, parts in KEYS.items() if keys and keys <= {*parts}]
    by_name = [row.kind for row in TABLE if row.fused == given.fused and row.kind in KEYS]
    return next(iter((*by_parts, *by_name)), "qkv")


def _check_rows(adapter: Adapter, sites: Sequence[Site]) -> None:
    """Raise LayoutError where the parts, as they are given, have other lengths than the adapter was trained on."""
    for site in (site for site in sites if site.why == AS_GIVEN):
        for part, length in zip(site.parts, site.layout.lengths, strict=True):
            factor = adapter.lora.get(part, {}).get("lora_B.weight")
            if factor and factor.shape[0] != length:
                raise LayoutError(
                    f"the layout that was given makes {part} {length} rows long, and the adapter has {factor.shape[0]}"
                    " of it",
                    where=[
                        f"{adapter.path}: {adapter.names[f'{part}.lora_B.weight']}",
                        f"{site.module} = {site.layout}",
                    ],
                    help="other --groups, --slots or --order are this module's, if the adapter is this base's",
                )


def _as_given(sites: Sequence[Site]) -> str:
    said = dict.fromkeys(str(site.layout) for site in sites if site.why == AS_GIVEN)
    return f", which lie as given: {', '.join(listed(list(said), 3))}" if said else ""


def _without(checkpoint: Checkpoint, names: set[str]) -> Checkpoint:
    """The checkpoint without tensors that the tables are not asked about."""
    return (
        replace(checkpoint, tensors={n: t for n, t in checkpoint.tensors.items() if n not in names})
        if names
        else checkpoint
    )
