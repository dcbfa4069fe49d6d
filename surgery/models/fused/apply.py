"""A site applied to tensors by name: which ones it uses up, and which it makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...lazy.tensor import Tensor, Zeros, reshape
from .row import Site


@dataclass(slots=True)
class Change:
    """What becomes of a site: the tensors that it makes, each with the one whose shard it takes; those it uses up,
    and drops.
    """

    made: dict[str, Tensor] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    used: dict[str, None] = field(default_factory=dict)  # a set in order
    dropped: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)  # of which parts have some elements, and others more often

    def take(self, name: str, made: Mapping[str, Tensor], *others: str) -> None:
        """Make tensors from `name`, and from `others` with it."""
        self.made |= made
        self.source |= dict.fromkeys(made, name)
        self.used |= dict.fromkeys((name, *others))


def split_tensors(tensors: Mapping[str, Tensor], site: Site) -> Change:
    """The parts of all tensors of a fused module. Raises LayoutError."""
    change = Change()
    for name, parts in site.names():
        if name in tensors:
            change.take(name, dict(zip(parts, site.cut(name, tensors[name]), strict=True)))
    for suffix in site.row.alike:
        if (name := f"{site.module}{suffix}") in tensors:
            change.take(name, dict.fromkeys([f"{part}{suffix}" for part in site.parts], tensors[name]))
    for one in site.row.beside:
        if (name := f"{site.parent}{one.name}") in tensors:
            change.take(name, {f"{site.part(one.part)}{one.suffix}": reshape(tensors[name], (tensors[name].size,))})
            for key, suffix in site.row.zeros:
                length = site.layout.lengths[list(site.row.parts).index(key)]
                change.take(name, {f"{site.part(key)}{suffix}": Zeros(tensors[name].dtype, (length,))})
    return change


def fuse_tensors(tensors: Mapping[str, Tensor], site: Site) -> Change:
    """The tensors of a fused module from all of its parts. Raises LayoutError."""
    change = Change()
    for name, parts in site.names():
        if parts[0] in tensors:
            change.take(parts[0], {name: site.join({part: tensors[part] for part in parts})}, *parts[1:])
    for suffix in site.row.alike:
        if (first := f"{site.parts[0]}{suffix}") in tensors:
            change.take(first, {f"{site.module}{suffix}": tensors[first]})
            change.dropped += [n for part in site.parts[1:] if (n := f"{part}{suffix}") in tensors]
    for one in site.row.beside:
        if (name := f"{site.part(one.part)}{one.suffix}") in tensors:
            shape = (*(1,) * (one.dims - 1), tensors[name].size)
            change.take(name, {f"{site.parent}{one.name}": reshape(tensors[name], shape)})
    change.dropped += [n for key, suffix in site.row.zeros if (n := f"{site.part(key)}{suffix}") in tensors]
    return change


def described(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """What a history says of these modules: one row for those that are alike."""
    alike = Counter(
        (s.row.kind, s.model_type, s.row.fused, tuple(s.row.parts.values()), str(s.layout), s.why) for s in sites
    )
    keys = ("kind", "model_type", "fused", "parts", "layout", "why")
    return [dict(zip(keys, row, strict=True)) | {"parts": list(row[3]), "count": count} for row, count in alike.items()]
