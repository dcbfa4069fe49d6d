"""Split fused modules, and fuse them back: a row of the table, read in both directions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import LayoutError, NothingMatched, PlanError, SurgeryError, listed
from ..fused.detect import KINDS, STYLES, detect, detect_split, known_types, looks_fused
from ..fused.given import Given, given_sites, given_split_sites
from ..fused.row import Site
from ..fused.tables import TABLE
from ..tensor import File, Tensor, Zeros, reshape

ATTENTION = ("qkv", "kv")


def split(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, *, given: Given | None = None) -> Checkpoint:
    """Replace each fused module by its parts, byte for byte: weights, biases, and what else lies on the fused axis.

        fused  (groups * slots * unit, hidden)  ->  part i (groups * slots[i] * unit, hidden)

    `kinds` are qkv, kv, gate_up and experts. The layout follows from the model types in config.json, or from `given`.
    Reads no data. Raises NothingMatched where nothing is fused, LayoutError where sizes do not fit or more than one layout
    would, NotSupported for quantised modules.
    """
    sites = fused_in(checkpoint, kinds, given)
    if not sites:
        raise _nothing(checkpoint, kinds)
    with _located(checkpoint):
        return _changed(checkpoint, "split", sites, [_split(checkpoint, site) for site in sites])


def fuse(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, *, given: Given | None = None) -> Checkpoint:
    """The inverse of `split`: the parts become the fused module that the model type has, byte for byte.

    It takes the shard of its first part. Reads no data. Raises NothingMatched where there is nothing to fuse, LayoutError
    where a part is missing or does not fit, NotSupported for quantised modules.
    """
    sites = split_in(checkpoint, kinds, given)
    if not sites:
        raise _nothing_to_fuse(checkpoint, kinds)
    with _located(checkpoint):
        return _changed(checkpoint, "fuse", sites, [_fuse(checkpoint, site) for site in sites])


def fused_in(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, given: Given | None = None) -> list[Site]:
    """The fused modules of a checkpoint. Raises LayoutError, NotSupported."""
    find = given_sites if given and given.says_layout else detect
    return _found(checkpoint, find, kinds, given)


def split_in(checkpoint: Checkpoint, kinds: Collection[str] = KINDS, given: Given | None = None) -> list[Site]:
    """The places of a checkpoint where the parts of fused modules lie. Raises LayoutError, NotSupported."""
    find = given_split_sites if given and given.says_layout else detect_split
    return _found(checkpoint, find, kinds, given)


def _found(checkpoint: Checkpoint, find: Callable[..., list[Site]], kinds: Collection[str], given: Given | None) -> list[Site]:
    how = given if given and given.says_layout else None
    with _located(checkpoint):
        if how:
            return find(how, checkpoint.config, checkpoint.tensors)
        return find(checkpoint.config, checkpoint.tensors, kinds, _names(given, kinds))


def _names(given: Given | None, kinds: Collection[str]) -> Mapping[str, str]:
    names = given.names if given else {}
    known = {key for row in TABLE if row.kind in kinds for key in row.parts}
    if unknown := sorted(names.keys() - known):
        raise SurgeryError(f"there is no part {', '.join(unknown)}", help=f"parts are {', '.join(sorted(known))}")
    return names


def split_qkv(checkpoint: Checkpoint, *, given: Given | None = None) -> Checkpoint:
    """`split` of the attention's projections: fused q, k and v, and fused k and v."""
    return split(checkpoint, ATTENTION, given=given)


def fuse_qkv(checkpoint: Checkpoint, *, given: Given | None = None) -> Checkpoint:
    """`fuse` of the attention's projections, the inverse of `split_qkv`."""
    return fuse(checkpoint, ATTENTION, given=given)


@dataclass(slots=True)
class _Change:
    """What becomes of a site: the tensors that it makes, each with the one whose shard it takes; those it uses up, and drops."""

    made: dict[str, Tensor] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    def take(self, name: str, made: Mapping[str, Tensor], *others: str) -> None:
        """Make tensors from `name`, and from `others` with it."""
        self.made |= made
        self.source |= dict.fromkeys(made, name)
        self.used += [n for n in (name, *others) if n not in self.used]


def _split(checkpoint: Checkpoint, site: Site) -> _Change:
    tensors, change = checkpoint.tensors, _Change()
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


def _fuse(checkpoint: Checkpoint, site: Site) -> _Change:
    tensors, change = checkpoint.tensors, _Change()
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


@contextmanager
def _located(checkpoint: Checkpoint) -> Iterator[None]:
    """Say of each tensor that an error names in which file it is."""
    try:
        yield
    except SurgeryError as error:
        shards = checkpoint.weight_map
        where = [f"{shards[line]}: {line}" if line in shards else line for line in error.where]
        raise type(error)(error.what, where=where, help=error.help) from error


def _changed(checkpoint: Checkpoint, verb: str, sites: Sequence[Site], changes: Sequence[_Change]) -> Checkpoint:
    """The checkpoint after all changes. Raises PlanError where a name is taken."""
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for change in changes:
        for name in (*change.used, *change.dropped):
            del tensors[name], weight_map[name]
    for change in changes:
        if taken := [name for name in change.made if name in tensors]:
            what = "a part would take the name of another tensor" if verb == "split" else "the fused tensor would take the name of another"
            where = listed([f"{change.source[name]} -> {name}" for name in taken])
            raise PlanError(what, where=where, help="rename or drop that one first")
        tensors |= change.made
        weight_map |= {name: checkpoint.weight_map[source] for name, source in change.source.items()}
    gone = {name: checkpoint.tensors[name] for change in changes for name in change.dropped}
    return checkpoint.with_step(
        {"surgery": verb, "modules": _rows(sites)},
        tensors=tensors,
        weight_map=weight_map,
        files=_with_config(checkpoint, verb, sites),
        dropped={**checkpoint.dropped, **gone},
    )


def _with_config(checkpoint: Checkpoint, verb: str, sites: Sequence[Site]) -> Mapping[str, File | bytes]:
    """The files, with what config.json says of being fused."""
    edits = {key: values[verb == "split"] for site in sites for key, values in site.row.config.items()}
    if not edits:
        return checkpoint.files
    return {**checkpoint.files, "config.json": encode_config({**checkpoint.config, **edits})}


def encode_config(config: Mapping[str, Any]) -> bytes:
    """config.json as transformers writes it."""
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=True) + "\n").encode()


def _rows(sites: Sequence[Site]) -> list[dict[str, Any]]:
    """The entry in the history: one row for modules that are alike."""
    alike = Counter((s.row.kind, s.model_type, s.row.fused, tuple(s.row.parts.values()), str(s.layout), s.why) for s in sites)
    keys = ("kind", "model_type", "fused", "parts", "layout", "why")
    return [dict(zip(keys, row, strict=True)) | {"parts": list(row[3]), "count": count} for row, count in alike.items()]


def _nothing(checkpoint: Checkpoint, kinds: Collection[str]) -> NothingMatched | LayoutError:
    """Why nothing was split: already split, an unknown layout, or nothing to split."""
    kind = checkpoint.config.get("model_type")
    mine = [row for row in TABLE if row.kind in kinds and kind in row.model_types]
    looks = [module for module, _ in looks_fused(checkpoint.tensors)] if "qkv" in kinds else []
    if there := detect_split(checkpoint.config, checkpoint.tensors, kinds):
        parts = dict.fromkeys(leaf for site in there for leaf in site.row.parts.values())
        tip = f"it has {', '.join(parts)}; there is nothing to do"
        return NothingMatched("the checkpoint is already split", where=[checkpoint.path], help=tip)
    if looks:
        return _ambiguous(checkpoint, looks)
    known = f"types with such modules are {', '.join(listed(known_types(kinds)))}"
    if mine:
        what, tip = f"no fused {mine[0].kind} of model type `{kind}` is here", f"its names would match {mine[0].parent}\\.{mine[0].fused}"
    elif not checkpoint.config:
        what, tip = "without config.json the layout of fused modules is not known", "put the model's config.json beside the shards"
    else:
        what, tip = f"nothing is fused here: model type `{kind}` has its parts apart", known
    return NothingMatched(what, where=[checkpoint.path], help=tip)


def _ambiguous(checkpoint: Checkpoint, modules: Sequence[str]) -> LayoutError:
    """Modules that look fused, in a layout that neither config.json nor the shapes tell: the candidates, and how to choose."""
    kind = checkpoint.config.get("model_type")
    leaf = modules[0].rpartition(".")[2]
    why = f"no layout is known for model type `{kind}`" if kind else "without a model type in config.json the layout is not known"
    return LayoutError(
        f"{why}, and more than one would fit what is called {leaf}",
        where=[checkpoint.path, *listed(list(modules))],
        help=("" if kind else "put the model's config.json beside the shards, or ")
        + f"say which with --layout {' or '.join(STYLES[leaf])} (and --groups, --slots where head counts are missing), as the modeling "
        "code has it; a wrong layout loads without an error and computes nonsense",
    )


def _nothing_to_fuse(checkpoint: Checkpoint, kinds: Collection[str]) -> NothingMatched:
    """Why nothing was fused: already fused, or no family that is."""
    kind = checkpoint.config.get("model_type")
    if detect(checkpoint.config, checkpoint.tensors, kinds):
        return NothingMatched("the checkpoint is already fused", where=[checkpoint.path], help="there is nothing to do")
    fused = " or ".join(kinds)
    return NothingMatched(
        f"no parts of a fused {fused} of model type `{kind}` are here",
        where=[checkpoint.path],
        help=f"types with one are {', '.join(listed(known_types(kinds)))}; --fused NAME with --layout says another",
    )
