"""The modules of a base, spelled as files of adapters call them.

No name of an adapter is ever taken apart: `lora_unet_mid_block_attentions_0_proj_in` is what one module of the base
comes to, or of none. A module has a name for each way to call it: its own, and that of the other naming of its
network, where the table knows it. What two modules would both be called is none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...lazy.tensor import Tensor
from ..fused.layout import Layout, Place, in_groups
from ..fused.row import IN_PROJ, LINEAR, Row, Site
from .components import Component, components_in
from .naming import ORIGINAL, TEXT, Naming, Pair, naming_of

_WEIGHTS = (".weight", "_weight")  # of a module, and of the fused projection of nn.MultiheadAttention


@dataclass(frozen=True, slots=True)
class Meant:
    """What a name means: a module of the base, or one that a site has: fused of parts in the base, or a part of it."""

    module: str
    site: Site | None = None
    fused: bool = False  # the base has the parts, and the name is of what they would be fused to
    swapped: bool = False  # the halves of its rows lie the other way round in the base


def spelled(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], component: Component | None = None
) -> dict[str, Meant | None]:
    """What each name means that an adapter's file may have for a module of these tensors; None where it is not clear.

    `component` is what of a pipeline they are, where that is known.
    """
    shapes = modules_of(tensors)
    found: dict[str, Meant | None] = {}
    for prefix, components in [("", (component,))] if component else components_in(shapes, config):
        paths = _paths(shapes, prefix, components)
        for one in components:
            for name, meant in _rooted(paths, one):
                if found.setdefault(name, meant) != meant:
                    found[name] = None
    return found


def modules_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each module's weight."""
    return {
        name.removesuffix(end): tensor.shape
        for name, tensor in tensors.items()
        for end in _WEIGHTS
        if name.endswith(end) and not name.endswith(f".{end}")
    }


def _rooted(paths: list[tuple[str, Meant]], component: Component) -> Iterator[tuple[str, Meant]]:
    for path, meant in paths:
        flat = path.replace(".", "_")
        yield from ((f"{root}{flat}", meant) for root in component.flat)
        yield from ((f"{root}{path}", meant) for root in component.dotted)


def _paths(
    shapes: Mapping[str, tuple[int, ...]], prefix: str, components: tuple[Component, ...]
) -> list[tuple[str, Meant]]:
    """Each path that a module below `prefix` is called by, without the root, and what it means."""
    here = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
    found = [(path, Meant(f"{prefix}{path}")) for path in here]
    naming, which = naming_of(here, [one for component in components for one in component.namings])
    if naming:
        found += (_by_diffusers if which == ORIGINAL else _by_original)(naming, here, prefix)
    if any(component.dotted[0].startswith("text") for component in components):
        found += [(_other(path), meant) for path, meant in found]
    return found


def _other(path: str) -> str:
    """The name of a text encoder's module in the other versions of transformers."""
    return path.removeprefix(TEXT) if path.startswith(TEXT) else f"{TEXT}{path}"


def _by_original(naming: Naming, here: Mapping[str, tuple[int, ...]], prefix: str) -> Iterator[tuple[str, Meant]]:
    """The original's names for the modules of a base that has diffusers'."""
    for pair in naming.pairs(here):
        if len(pair.diffusers) == 1:
            for path in below(here, pair.diffusers[0]):
                meant = Meant(f"{prefix}{path}", swapped=pair.swapped)
                yield f"{pair.original}{path.removeprefix(pair.diffusers[0])}", meant
        elif all(part in here for part in pair.diffusers):
            site = apart(pair, here, prefix, naming)
            yield pair.original, Meant(site.module, site, fused=True)


def _by_diffusers(naming: Naming, here: Mapping[str, tuple[int, ...]], prefix: str) -> Iterator[tuple[str, Meant]]:
    """Diffusers' names for the modules of a base that has the original's."""
    for pair in naming.pairs(here):
        if len(pair.diffusers) == 1:
            for path in below(here, pair.original):
                meant = Meant(f"{prefix}{path}", swapped=pair.swapped)
                yield f"{pair.diffusers[0]}{path.removeprefix(pair.original)}", meant
        elif pair.original in here:
            site = whole(pair, here, prefix, naming)
            for part, module in zip(pair.diffusers, site.parts, strict=True):
                yield part, Meant(module, site)


def below(here: Mapping[str, tuple[int, ...]], name: str) -> list[str]:
    """The module of that name, and those in it."""
    return [path for path in here if path == name or path.startswith(f"{name}.")]


def apart(pair: Pair, here: Mapping[str, tuple[int, ...]], prefix: str, naming: Naming) -> Site:
    """The place of the original's fused module among its parts."""
    parent = _common(pair.diffusers)
    layout = in_groups(1, *(here[part][0] for part in pair.diffusers))
    return _site(
        f"{prefix}{parent}", pair.original, [part.removeprefix(parent) for part in pair.diffusers], layout, naming
    )


def whole(pair: Pair, here: Mapping[str, tuple[int, ...]], prefix: str, naming: Naming) -> Site:
    """The original's fused module; its parts are called in it as diffusers calls them."""
    parent, _, leaf = pair.original.rpartition(".")
    rows, width, count = here[pair.original][0], here[pair.original][1], len(pair.diffusers)
    each = (rows - width) // 2  # k and v may have fewer heads than q
    sizes = [width, each, each] if count == 3 else [width] * 3 + [rows - 3 * width]
    names = [part.rpartition(".")[2] for part in pair.diffusers]
    return _site(f"{prefix}{parent}.", leaf, names, in_groups(1, *sizes), naming)


def _site(parent: str, leaf: str, parts: list[str], layout: Layout, naming: Naming) -> Site:
    def rule(place: Place) -> Layout:
        return layout

    named = {str(i): part for i, part in enumerate(parts)}
    suffixes = IN_PROJ if leaf == "in_proj" else LINEAR
    row = Row("qkv", (), "", leaf, named, rule, naming.source, tensors=suffixes)
    return Site(row, f"{parent}{leaf}", layout, 0, "", f"as {naming.name} has it")


def _common(names: tuple[str, ...]) -> str:
    """The names' common beginning, up to a dot."""
    first, *others = (name.split(".")[:-1] for name in names)
    count = next((i for i, part in enumerate(first) if any(o[i : i + 1] != [part] for o in others)), len(first))
    return "".join(f"{part}." for part in first[:count])
