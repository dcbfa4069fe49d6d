"""What the modules of a base are called in one of the two namings of its network: `spelling.py` read backwards.

names      the module of the base -> its name; of a site's module, or parts, where the base has it otherwise
fused      the sites whose parts the base has, and the naming the whole
apart      the sites of which the base has the whole, and the naming the parts
swapped    modules of the base whose rows' halves the naming has the other way round
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ..fused.row import Site
from .naming import DIFFUSERS, ORIGINAL, Naming, naming_of
from .spelling import apart, below, whole


@dataclass(frozen=True, slots=True)
class Called:
    """The names; `here` is the naming that the base has, "" where no table knows its network."""

    here: str
    naming: Naming | None = None
    names: Mapping[str, str] = field(default_factory=dict)
    fused: tuple[Site, ...] = ()
    apart: tuple[Site, ...] = ()
    swapped: frozenset[str] = frozenset()


def called(shapes: Mapping[str, tuple[int, ...]], namings: Collection[Naming], want: str = "") -> Called:
    """What these modules are called in the naming `want`; in that of kohya's scripts where none is said."""
    naming, here = naming_of(shapes, namings)
    if naming is None or (want or naming.kohya(shapes)) == here:
        sites = _by_diffusers(naming, shapes).apart if naming and here == ORIGINAL else ()
        return Called(here, naming, {module: module for module in shapes}, fused=sites)
    return _by_original(naming, shapes) if here == DIFFUSERS else _by_diffusers(naming, shapes)


def _by_original(naming: Naming, shapes: Mapping[str, tuple[int, ...]]) -> Called:
    names, sites, swapped = dict[str, str](), dict[str, Site](), set[str]()
    for pair in naming.pairs(shapes):
        if len(pair.diffusers) == 1:
            one = {path: _moved(path, pair.diffusers[0], pair.original) for path in below(shapes, pair.diffusers[0])}
            swapped |= set(one) - names.keys() if pair.swapped else set()
            names = one | names
        elif all(part in shapes for part in pair.diffusers) and not sites.keys() & set(pair.diffusers):
            site = apart(pair, shapes, "", naming)
            names[site.module] = pair.original
            sites |= dict.fromkeys(pair.diffusers, site)
    return Called(
        DIFFUSERS, naming, names, tuple({site.module: site for site in sites.values()}.values()), (), frozenset(swapped)
    )


def _by_diffusers(naming: Naming, shapes: Mapping[str, tuple[int, ...]]) -> Called:
    names, sites, swapped = dict[str, str](), list[Site](), set[str]()
    for pair in naming.pairs(shapes):
        if len(pair.diffusers) == 1:
            one = {path: _moved(path, pair.original, pair.diffusers[0]) for path in below(shapes, pair.original)}
            swapped |= set(one) - names.keys() if pair.swapped else set()
            names = one | names
        elif pair.original in shapes:
            site = whole(pair, shapes, "", naming)
            names |= dict(zip(site.parts, pair.diffusers, strict=True))
            sites.append(site)
    return Called(ORIGINAL, naming, names, (), tuple(sites), frozenset(swapped))


def _moved(path: str, old: str, new: str) -> str:
    return f"{new}{path.removeprefix(old)}"
