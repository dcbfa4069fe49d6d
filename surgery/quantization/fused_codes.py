"""Fused modules that are quantised, split and fused as their codes are: no number is decoded, none is rounded.

Each stored tensor is cut along the axis of the weight that is cut (`grids.py`), or each part has it; what says the
weight's shape is said again. Where that cannot be, it is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ..checkpoint import Checkpoint
from ..errors import NotSupported, listed
from ..evaluation.evaluate import blocks, workspace_of
from ..lazy.tensor import Constant, Permute, Shape, Tensor, concat, narrow, permute, reshape
from ..models.fused.apply import Change
from ..models.fused.layout import fuse_axis, split_axis
from ..models.fused.row import Site
from .grids import Lies, coarser, lies, opaque, parts_of, same_coding, spans, under, whole_of
from .quantised import Quantisation, quantised
from .scheme import Quantised, module_of

FIRST = "write it in 16 bits first: surgery dequantize {} -o OUT"


@dataclass(frozen=True)
class Codes:
    """What is quantised in a checkpoint, found in `leaves` alone: in place of what was moved before is a leaf."""

    checkpoint: Checkpoint
    held: Quantisation
    leaves: Mapping[str, Tensor]

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors."""
        return self.checkpoint.tensors

    def parts(self, name: str) -> list[str]:
        """The stored tensors of a weight."""
        one = self.held.weights[name]
        return [part for part in (*one.parts, *one.left) if part in self.tensors]

    def refused(self, what: str, *where: str) -> NotSupported:
        """The error for codes that do not move as a whole."""
        path = self.checkpoint.path
        return NotSupported(what, where=[path, *listed(list(where))], help=FIRST.format(path))


def codes_of(checkpoint: Checkpoint, held: Quantisation) -> Codes:
    """The quantised weights of a checkpoint, of which `held` was read."""
    leaves = {name: opaque(name, tensor) for name, tensor in checkpoint.tensors.items()} if held.weights else {}
    moved = any(leaf is not checkpoint.tensors[name] for name, leaf in leaves.items())
    return Codes(checkpoint, quantised(replace(checkpoint, tensors=leaves)) if moved else held, leaves)


def split_codes(codes: Codes, site: Site, change: Change) -> Change:
    """The change, told in 16 bits, with codes in place of the weights that are quantised. Raises NotSupported where a
    cut does not fit them.
    """
    for fused, parts in site.names():
        if one := codes.held.weights.get(fused):
            shapes, turned = [change.made[part].shape for part in parts], _turned(codes, site, one)
            _withdraw(change, [fused], parts)
            for name, lie in _lies(codes, one, fused, site).items():
                said = _said(codes, name, one, shapes)
                made = said or _cut(codes, site, name, lie, change, turned=turned)
                change.take(name, {renamed(codes, name, fused, p): t for p, t in zip(parts, made, strict=True)})
                change.dropped += [name] if said else []
    return change


def fuse_codes(codes: Codes, site: Site, change: Change) -> Change:
    """The inverse of `split_codes`. Raises NotSupported where parts are not coded alike, or have scales that one
    weight cannot have.
    """
    for fused, parts in site.names():
        if any(part in codes.held.weights for part in parts):
            shape, one = change.made[fused].shape, _alike(codes, fused, parts)[0]
            turned = _turned(codes, site, one)
            _withdraw(change, parts, [fused])
            for name, lie in _lies(codes, one, parts[0], site).items():
                names = [renamed(codes, name, parts[0], part) for part in parts]
                said = _said(codes, name, one, [shape])
                change.dropped += names if said else []
                made = said[0] if said else _joined(codes, site, names, lie, change, turned=turned)
                change.take(name, {renamed(codes, name, parts[0], fused): made}, *names[1:])
    return change


def _lies(codes: Codes, one: Quantised, weight: str, site: Site) -> dict[str, Lies]:
    """How each stored tensor of a weight lies along the axis that is cut: of the fused one, or of a part."""
    axis = site.row.axis
    if site.row.stacked and len(one.weight.shape) == 2:
        axis = 2 - axis if site.row.transposed else axis - 1
    try:
        found = lies(one, codes.leaves, axis)
    except NotSupported as error:
        raise codes.refused(f"the codes of {weight} do not move as a whole: {error.what}", weight) from error
    return {name: found[name] for name in codes.parts(weight)}


def _turned(codes: Codes, site: Site, one: Quantised) -> bool:
    """Whether a stored matrix of an expert is the transpose of that in the stack. Raises NotSupported for words of
    codes, which have no transpose.
    """
    turned = site.row.stacked and isinstance(one.weight, Permute) != site.row.transposed
    coding = under(one.weight)[0].coding
    if turned and (coding.packing or coding.zero or coding.flat):
        raise codes.refused(f"the codes of {one.codes} are words, and experts apart are transposed", one.codes)
    return turned


def _cut(codes: Codes, site: Site, name: str, lie: Lies, change: Change, *, turned: bool) -> list[Tensor]:
    """The parts of a stored tensor, in the order of the site's."""
    tensor = codes.tensors[name]
    if not site.row.stacked:
        return _along(codes, site, name, tensor, lie, change)
    if lie.axis is None and tensor.shape[:1] != (site.experts,):
        return [tensor] * len(site.parts)
    if tensor.shape[:1] != (site.experts,) or lie.axis == 0:
        raise codes.refused(f"{name} has no axis of {site.experts} experts", name)
    lie = lie if lie.axis is None else replace(lie, axis=lie.axis - 1)
    experts = (reshape(narrow(tensor, 0, e, 1), tensor.shape[1:]) for e in range(site.experts))
    found = (part for one in experts for part in _along(codes, site, name, one, lie, change))
    return [_turn(part) if turned else part for part in found]


def _turn(tensor: Tensor) -> Tensor:
    return permute(tensor, (1, 0)) if len(tensor.shape) == 2 else tensor


def _along(codes: Codes, site: Site, name: str, tensor: Tensor, lie: Lies, change: Change) -> list[Tensor]:
    """A tensor cut along an axis, each part with the entries of its rows."""
    layout = site.layout
    if lie.axis is None:
        return [tensor] * len(layout.slots)
    if (fine := coarser(layout, lie.each)) and tensor.shape[lie.axis] == fine.length:
        return split_axis(tensor, lie.axis, fine)
    found = [whole_of(rows, lie.each) if lie.shared else None for rows in spans(layout)]
    axis, taken = lie.axis, [entries for entries in found if entries is not None]
    if len(taken) < len(found):
        raise codes.refused(f"{site.module} is cut as {layout}, within what {_share(lie)} of {name}", name)
    change.shared.append(name)
    return [concat([narrow(tensor, axis, at, n) for at, n in _runs(entries)], axis) for entries in taken]


def _share(lie: Lies) -> str:
    rows, entries = lie.each.denominator, lie.each.numerator
    return f"{rows} rows share: {entries} entr{'y' if entries == 1 else 'ies'}"


def _runs(entries: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(first, how many) for each run of neighbours."""
    start = 0
    for i in range(1, len(entries) + 1):
        if i == len(entries) or entries[i] != entries[i - 1] + 1:
            yield entries[start], i - start
            start = i


def _alike(codes: Codes, fused: str, parts: Sequence[str]) -> list[Quantised]:
    """The parts of a weight. Raises NotSupported where they are not all quantised in one way."""
    found = [codes.held.weights.get(part) for part in parts]
    ones = [one for one in found if one]
    if plain := [part for part, one in zip(parts, found, strict=True) if not one]:
        raise codes.refused(f"{fused} has parts that are quantised, and others that are not", *plain)
    first, names = under(ones[0].weight)[0], codes.parts(parts[0])
    for part, one in zip(parts, ones, strict=True):
        other, mine = under(one.weight)[0], {renamed(codes, name, parts[0], part) for name in names}
        if mine != set(codes.parts(part)):
            odd = sorted(mine.symmetric_difference(codes.parts(part)))
            raise codes.refused(f"the parts of {fused} are not stored alike", *odd)
        if other.dtype != first.dtype or not same_coding(first, other):
            raise codes.refused(f"the parts of {fused} are not quantised alike", parts[0], part)
    return ones


def _joined(codes: Codes, site: Site, names: Sequence[str], lie: Lies, change: Change, *, turned: bool) -> Tensor:
    """The stored tensor of the fused weight, of those of its parts."""
    each = len(site.row.parts)
    if not site.row.stacked:
        return _join(codes, site, names, lie, change)
    lie = replace(lie, axis=1 - lie.axis) if turned and lie.axis is not None else lie
    experts = [
        _join(codes, site, names[at : at + each], lie, change, turned=turned) for at in range(0, len(names), each)
    ]
    return concat([reshape(expert, (1, *expert.shape)) for expert in experts], 0)


def _join(codes: Codes, site: Site, names: Sequence[str], lie: Lies, change: Change, *, turned: bool = False) -> Tensor:
    """Parts of one tensor joined. Raises NotSupported where one entry would be that of parts that differ."""
    tensors = [_turn(codes.tensors[name]) if turned else codes.tensors[name] for name in names]
    axis = lie.axis
    if axis is None:
        _check_same(codes, site, list(zip(names, tensors, strict=True)))
        change.dropped += names[1:]
        return tensors[0]
    fine = coarser(site.layout, lie.each)
    if fine and [tensor.shape[axis] for tensor in tensors] == list(fine.lengths):
        return fuse_axis(tensors, axis, fine)
    if not lie.shared:
        raise codes.refused(f"parts of {site.module} meet within what {_share(lie)} of {names[0]}", *names)
    entries = parts_of(site.layout, lie.each)
    for owners in entries:
        _check_same(codes, site, [(names[part], narrow(tensors[part], axis, at, 1)) for part, at in owners])
    taken = [owners[0] for owners in entries]
    kept = {part for part, _ in taken}
    change.dropped += [name for part, name in enumerate(names) if part not in kept]
    change.shared += [names[part] for part in sorted(kept)]
    return concat([narrow(tensors[part], axis, at, 1) for part, at in taken], axis)


def _check_same(codes: Codes, site: Site, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Raise NotSupported unless all are the same, byte for byte."""
    first = tensors[0][1]
    for name, tensor in tensors[1:]:
        if tensor != first and (tensor.dtype != first.dtype or content_of(tensor) != content_of(first)):
            what = f"the parts of {site.module} have scales of their own where the fused weight has one for all"
            raise codes.refused(what, tensors[0][0], name)


def content_of(tensor: Tensor) -> bytes:
    """The bytes of a small tensor."""
    work = workspace_of(1 << 20)
    try:
        return b"".join(bytes(data) for _, data in blocks(tensor, 0, tensor.size, work))
    finally:
        work.close()


def _said(codes: Codes, name: str, one: Quantised, shapes: Sequence[Shape]) -> list[Tensor]:
    """What says the shape of a weight, for weights of these shapes; [] where the tensor says nothing of it."""
    scheme = codes.held.scheme
    if not scheme or not scheme.shape_in or scheme.shape_in not in name:
        return []
    data, dtype = content_of(codes.tensors[name]), codes.tensors[name].dtype
    turned = isinstance(one.weight, Permute)
    said = [scheme.restated(data, (*shape[:-2], *shape[:-3:-1]) if turned else shape) for shape in shapes]
    return [Constant(dtype, (len(raw) * 8 // dtype.bits,), raw) for raw in said]


def renamed(codes: Codes, name: str, weight: str, new: str) -> str:
    """What a stored tensor of `weight` is called where it is one of `new`."""
    if name.startswith(weight):
        return f"{new}{name.removeprefix(weight)}"
    module = f"{module_of(weight)}."
    if name.startswith(module):
        return f"{module_of(new)}.{name.removeprefix(module)}"
    raise codes.refused(f"{name} belongs to {weight}, and not by its name", name)


def _withdraw(change: Change, used: Sequence[str], made: Sequence[str]) -> None:
    """Take back what the change says of weights in 16 bits."""
    for name in used:
        del change.used[name]
    for name in made:
        del change.made[name], change.source[name]
