"""Which modules of a checkpoint are fused, as data: told from names, shapes and config alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..errors import LayoutError, NotSupported
from ..models.fused.detect import choices, detect, looks_fused
from ..models.fused.row import Site


@dataclass(frozen=True, slots=True)
class FusedModules:
    """Modules that are fused alike: their last name, what `split` makes of each, and how that is known.

    Where the layout is not known, `layout` is empty, `why` says what makes them look fused, and `could_be` has what
    fits.
    """

    name: str
    modules: int
    such_as: str
    parts: tuple[str, ...]
    layout: str
    why: str
    could_be: tuple[str, ...] = ()


def fused_in(checkpoint: Checkpoint) -> tuple[tuple[FusedModules, ...], list[str]]:
    """What is fused, and what looks so; a note where the family is known and the tensors contradict it."""
    try:
        sites = detect(checkpoint.config, checkpoint.tensors)
    except (LayoutError, NotSupported) as error:
        return (), [f"a fused family, but {error.what}"]
    taken = {site.module for site in sites}
    looks = [pair for pair in looks_fused(checkpoint.tensors) if pair[0] not in taken]
    return (*_known(sites), *_undetermined(checkpoint, looks)), []


def _known(sites: Iterable[Site]) -> list[FusedModules]:
    """Those whose layout is known, a row for those that are alike."""
    alike: dict[tuple[str, tuple[str, ...], str, str], list[str]] = defaultdict(list)
    for site in sites:
        alike[site.row.fused, tuple(site.row.parts.values()), str(site.layout), site.why].append(site.module)
    return [
        FusedModules(name, len(modules), modules[0], parts, layout, why)
        for (name, parts, layout, why), modules in alike.items()
    ]


def _undetermined(checkpoint: Checkpoint, looks: Iterable[tuple[str, str]]) -> list[FusedModules]:
    """Those that look fused by their name, and what their layout could be."""
    alike: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for module, suffix in looks:
        alike[module.rpartition(".")[2]].append((module, suffix))
    return [
        FusedModules(
            name,
            len(pairs),
            pairs[0][0],
            (),
            "",
            "by its name",
            tuple(choices(checkpoint.config, checkpoint.tensors, *pairs[0])),
        )
        for name, pairs in alike.items()
    ]
