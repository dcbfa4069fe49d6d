"""What config.json says of modules by their names, where some were split or fused; and the codes read again.

A name in a list, or a key for one module, is followed. A pattern is not rewritten: it must mean of the new modules
what it meant of the old ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NotSupported, listed
from ..lazy.tensor import Permute, Shape, Tensor
from ..models.fused.row import Site
from ..models.names_v5 import in_memory, renames_of
from ..names import natural
from .compressed_tensors import named_by
from .declared import replaced
from .fused_codes import FIRST, Codes, renamed
from .grids import same_coding, under
from .quantised import SCHEMES, declared, method_of, quantised, said_in
from .scheme import Scheme
from .skip_lists import PLAIN, skipping

KEYED = ("dynamic", "extra_config", "quantized_layers")  # what is said of single modules, by their names
MARKS = ("re:", "+:", "-:")
Renames = Mapping[str, Sequence[str]]


def followed(made: Checkpoint, codes: Codes, sites: Sequence[Site], verb: str) -> Checkpoint:
    """`made`, in which these sites were split or fused, with a config that says of the new modules what it said of the
    old ones. Raises NotSupported where patterns do not say that.
    """
    held = codes.held
    if held.scheme is None:
        return made
    new: dict[str, Sequence[str]] = {}
    for site in sites:
        new |= {site.module: site.parts} if verb == "split" else {part: [site.module] for part in site.parts}
    return _told(made, codes.checkpoint, held.scheme, held.said, held.at, new)


def lists_followed(made: Checkpoint, checkpoint: Checkpoint, new: Mapping[str, str]) -> Checkpoint:
    """`made`, in which the tensors of `checkpoint` have `new` names, with what is said of modules by theirs. Raises
    NotSupported where patterns would say another thing.
    """
    modules = {o.rpartition(".")[0]: n.rpartition(".")[0] for o, n in new.items() if o != n}
    names = {old: [module] for old, module in modules.items() if old != module and not old.endswith(".weight")}
    for at, said, _ in declared(checkpoint) if names else ():
        if (scheme := SCHEMES.get(method_of(said))) is not None:
            return _told(made, checkpoint, scheme, said, at, names)
    return made


def _told(
    made: Checkpoint, checkpoint: Checkpoint, scheme: Scheme, said: Mapping[str, Any], at: tuple[str, ...], new: Renames
) -> Checkpoint:
    """`made` with what is said of new modules, in config.json and the files beside it: lists have the names that
    modules have in files, or in memory.
    """
    called = _in_memory(checkpoint)
    ends = _ends({called(old): [called(name) for name in names] for old, names in new.items()} | dict(new))
    told = {name: said_in(checkpoint, name) for name in scheme.files if name in checkpoint.files}
    now = {name: _followed(beside, ends) for name, beside in told.items()}
    followed_here = _followed(said, ends)
    for before, after in ((said, followed_here), *((told[name], now[name]) for name in told)):
        _check_meant(checkpoint, before, after, new)
    files = {name: f"{json.dumps(value, indent=4)}\n".encode() for name, value in now.items() if value != told[name]}
    made = replace(made, files={**made.files, **files})
    return made.with_config(replaced(made.config, at, followed_here)) if at and followed_here != said else made


def _in_memory(checkpoint: Checkpoint) -> Callable[[str], str]:
    """What a module of the files is called in memory."""
    renames = renames_of(checkpoint.config)
    return lambda module: in_memory(f"{module}.weight", renames).removesuffix(".weight")


def _pairs(site: Site, verb: str) -> Iterator[tuple[str, str, Site]]:
    """(a weight before, one that is made of it, where) for each tensor of a site."""
    for fused, parts in site.names():
        for part in parts:
            yield (fused, part, site) if verb == "split" else (part, fused, site)


def _ends(new: Renames) -> dict[str, dict[str, None]]:
    """How the name of a module can end, from a dot on -> how those of the new ones do."""
    ends: dict[str, dict[str, None]] = {}
    for old, names in new.items():
        cuts = [0, *(i + 1 for i, sign in enumerate(old) if sign == ".")]
        for cut in cuts:
            if all(name.startswith(old[:cut]) for name in names):
                ends.setdefault(old[cut:], {}).update(dict.fromkeys(name[cut:] for name in names))
    return ends


def _followed(said: Any, ends: Mapping[str, Mapping[str, None]], key: str = "") -> Any:
    """What is said, with new names wherever a list or a key has an old one."""
    match said:
        case Mapping():
            names = {k: list(ends.get(k, (k,))) if key in KEYED else [k] for k in said}
            return {name: _followed(value, ends, k) for k, value in said.items() for name in names[k]}
        case list():
            if not all(isinstance(one, str) for one in said):
                return [_followed(one, ends) for one in said]
            return list(dict.fromkeys(name for one in said for name in ends.get(one, (one,))))
    return said


def _lists(said: Any, at: str = "", key: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """The lists that could name modules, and the keys that do, each after the keys that lead `at` it; a pattern that
    is a key stands alone.
    """
    match said:
        case Mapping():
            if key in KEYED:
                yield at, tuple(name for name in said if PLAIN.fullmatch(name))
                yield from ((f"{at}.{name}", (name,)) for name in said if not PLAIN.fullmatch(name))
            for name, value in said.items():
                yield from _lists(value, f"{at}.{name}" if at else name, name)
        case list() if said and all(isinstance(one, str) for one in said):
            yield at, tuple(said)
        case list():
            for i, one in enumerate(said):
                yield from _lists(one, f"{at}.{i}")


def _rule(names: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether one of the names means a module: as it is, as its end, or as the pattern that it is marked as."""
    plain = tuple(name for name in names if not name.startswith(MARKS))
    marked = named_by([f"re:{name[len(mark) :]}" for name in names for mark in MARKS if name.startswith(mark)])
    wild, listed_here = [name for name in plain if "*" in name], skipping(plain)
    return lambda module: listed_here(module) or marked(module) or any(fnmatchcase(module, name) for name in wild)


def _check_meant(checkpoint: Checkpoint, before: Any, after: Any, new: Renames) -> None:
    """Raise NotSupported for modules of which a list says another thing than of those that they are made of."""
    was, now = ({key: _rule(names) for key, names in _lists(said)} for said in (before, after))
    called = _in_memory(checkpoint)

    def meant(rule: Callable[[str], bool] | None, module: str) -> bool:
        return rule is not None and (rule(module) or rule(called(module)))

    wrong = [
        f"{old} -> {name}: {key}"
        for key in now
        for old, names in new.items()
        for name in names
        if meant(now[key], name) != meant(was.get(key), old)
    ]
    if wrong:
        what = f"what config.json says of {len(wrong)} modules by patterns, it would not say of what becomes of them"
        tip = f"name them one by one in quantization_config; or {FIRST.format(checkpoint.path)}"
        raise NotSupported(what, where=[checkpoint.path, *listed(wrong)], help=tip)


def check_found(made: Checkpoint, codes: Codes, sites: Sequence[Site], verb: str, shapes: Mapping[str, Shape]) -> None:
    """Raise NotSupported unless the scheme finds all that is quantised again, coded as it was; `shapes` are those of
    the new weights in 16 bits.
    """
    if codes.held.scheme is None:
        return
    pairs = [pair for site in sites for pair in _pairs(site, verb)]
    held = codes.held
    mine = [pair for pair in pairs if pair[0] in held.weights]
    try:
        found = quantised(made).weights
    except (FormatError, NotSupported) as error:
        what, tip = f"the codes would not be read again: {error.what}", FIRST.format(codes.checkpoint.path)
        raise NotSupported(what, where=error.where, help=tip) from error
    old = {module for site in sites for module in ([site.module] if verb == "split" else site.parts)}
    if alone := [name for name in held.left if name.rpartition(".")[0] in old]:
        raise codes.refused("scales of activations belong to modules that would be gone", *alone)
    wanted = (held.weights.keys() - {before for before, _, _ in mine}) | {new for _, new, _ in mine}
    if wanted != found.keys():
        raise codes.refused("other modules would be quantised", *sorted(wanted ^ found.keys(), key=natural))
    for before, new, site in mine:
        if not _same(held.weights[before].weight, found[new].weight, site, shapes[new]):
            raise codes.refused("the codes would mean another weight where they are read again", f"{before} -> {new}")
        names = (renamed(codes, name, before, new) for name in codes.parts(before))
        if stray := [name for name in names if name not in (*found[new].parts, *found[new].left)]:
            raise codes.refused(f"nothing would read what belongs to {new}", *stray)


def _same(one: Tensor, other: Tensor, site: Site, shape: Shape) -> bool:
    """Whether a weight is coded, and turned, as what was made of another at a site must be."""
    permuted, stacked = isinstance(one, Permute), site.row.stacked
    turned = stacked and permuted != site.row.transposed
    if other.shape != shape or isinstance(other, Permute) != (permuted and not stacked):
        return False
    before, after = under(one)[0], under(other)[0]
    return before.dtype == after.dtype and same_coding(before, after, turned=turned)
