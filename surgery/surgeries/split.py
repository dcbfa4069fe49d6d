"""Split fused projections, and fuse them back: one table row, read in both directions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence

from ..checkpoint import Checkpoint
from ..errors import LayoutError, NothingMatched, NotSupported, PlanError, listed
from ..layouts import FAMILIES, Family, Fused, detect, detect_split, fuse_axis, looks_fused, split_axis
from ..tensor import Tensor

SUFFIXES = (".weight", ".bias")


def split_qkv(checkpoint: Checkpoint) -> Checkpoint:
    """Replace each fused qkv projection by its q, k and v, byte for byte, weights and biases.

        fused  (groups * slots * head_dim, hidden)  ->  q (groups * q_slots * head_dim, hidden), k and v likewise

    The layout follows from the model types in config.json (`surgery/layouts.py`). Reads no data. Raises NothingMatched
    where no fused projection is, LayoutError where the rows do not fit, NotSupported for quantised ones.
    """
    modules = {n.rpartition(".")[0] for n in checkpoint.tensors}
    found = detect(checkpoint.config, modules)
    if not found:
        raise _nothing(checkpoint, modules)
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for fused in found:
        _check_whole(checkpoint, fused.modules)
        for name, parts in _names(checkpoint, fused):
            shard = weight_map.pop(name)
            for part, value in zip(parts, _parts(checkpoint, name, tensors.pop(name), fused), strict=True):
                if part in checkpoint.tensors:
                    raise PlanError("a part would take the name of another tensor", where=[f"{name} -> {part}"])
                tensors[part], weight_map[part] = value, shard
    return checkpoint.with_step(_step("split-qkv", found), tensors=tensors, weight_map=weight_map)


def fuse_qkv(checkpoint: Checkpoint) -> Checkpoint:
    """The inverse of `split_qkv`: q, k and v become the fused projection of the model type, byte for byte.

    It takes the shard of its q. Reads no data. Raises NothingMatched where there is nothing to fuse, LayoutError where a
    part is missing or does not fit, NotSupported for quantised ones.
    """
    modules = {n.rpartition(".")[0] for n in checkpoint.tensors}
    found = detect_split(checkpoint.config, modules)
    if not found:
        raise _nothing_to_fuse(checkpoint, modules)
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for fused in found:
        _check_whole(checkpoint, [part for module in fused.modules for part in fused.parts_of(module)])
        for name, parts in _names(checkpoint, fused):
            if name in checkpoint.tensors:
                raise PlanError("the fused tensor would take the name of another", where=[f"{parts[0]} -> {name}"])
            weight_map[name] = weight_map[parts[0]]
            tensors[name] = _fused(checkpoint, parts, fused)
            for part in parts:
                del tensors[part], weight_map[part]
    return checkpoint.with_step(_step("fuse-qkv", found), tensors=tensors, weight_map=weight_map)


def _names(checkpoint: Checkpoint, fused: Fused) -> Iterator[tuple[str, list[str]]]:
    """(fused name, names of its parts) of each weight, and of each bias where there are biases."""
    for module in fused.modules:
        for suffix in SUFFIXES:
            names = (f"{module}{suffix}", [f"{part}{suffix}" for part in fused.parts_of(module)])
            if names[0] in checkpoint.tensors or any(part in checkpoint.tensors for part in names[1]):
                yield names


def _parts(checkpoint: Checkpoint, name: str, tensor: Tensor, fused: Fused) -> list[Tensor]:
    axis = fused.family.axis if len(tensor.shape) > 1 else 0
    if len(tensor.shape) <= axis or tensor.shape[axis] != fused.layout.rows:
        raise _misfit(checkpoint, name, tensor, axis, f"{fused.layout.rows} = {fused.layout}", fused)
    return split_axis(tensor, axis, fused.layout)


def _fused(checkpoint: Checkpoint, parts: Sequence[str], fused: Fused) -> Tensor:
    layout, values = fused.layout, [checkpoint.tensors[part] for part in parts]
    axis = fused.family.axis if len(values[0].shape) > 1 else 0
    for name, value, slots in zip(parts, values, layout.slots, strict=True):
        rows = layout.groups * slots * layout.head_dim
        if len(value.shape) <= axis or value.shape[axis] != rows:
            raise _misfit(checkpoint, name, value, axis, f"{rows}, its part of {layout}", fused)
    return fuse_axis(values, axis, layout)


def _misfit(checkpoint: Checkpoint, name: str, tensor: Tensor, axis: int, wanted: str, fused: Fused) -> LayoutError:
    return LayoutError(
        f"the fused qkv does not fit the layout of model type `{fused.model_type}`",
        where=[f"{checkpoint.weight_map[name]}: {name}", f"{tensor.shape} along axis {axis} is not {wanted}"],
        help="the head counts in config.json and the tensor's shape contradict each other; one of them is not this model's",
    )


def _check_whole(checkpoint: Checkpoint, modules: Sequence[str]) -> None:
    """Every module has a weight, all or none have a bias, and none has anything else."""
    _check_companions(checkpoint, set(modules))
    bare = [m for m in modules if f"{m}.weight" not in checkpoint.tensors]
    if bare:
        raise LayoutError(
            f"{len(bare)} projections have no weight, though their siblings have one",
            where=listed(bare),
            help="the checkpoint is incomplete, or quantised under other names; fetch it again, or take the unquantised one",
        )
    biased = {m for m in modules if f"{m}.bias" in checkpoint.tensors}
    if biased and len(biased) != len(modules):
        raise LayoutError(
            "some fused projections have a bias, and some have none",
            where=[f"without: {', '.join(listed([m for m in modules if m not in biased]))}"],
            help="the checkpoint is incomplete; fetch it again",
        )


def _check_companions(checkpoint: Checkpoint, modules: set[str]) -> None:
    """Quantisation stores scales and packed weights beside the weight: cutting one without the other breaks both."""
    names = sorted(checkpoint.tensors)
    others = []
    for module in sorted(modules):
        first, stop = bisect_left(names, f"{module}."), bisect_left(names, f"{module}/")  # "/" is the character after "."
        others += [n for n in names[first:stop] if n.removeprefix(module) not in SUFFIXES]
    if others:
        raise NotSupported(
            f"{len(others)} tensors belong to fused projections, and are neither weight nor bias: are these quantised?",
            where=listed([f"{checkpoint.weight_map[n]}: {n}" for n in others]),
            help="split the unquantised checkpoint, and quantise the result",
        )


def _step(name: str, found: list[Fused]) -> Mapping[str, object]:
    """The entry in the history."""
    rows = [{"model_type": f.model_type, "layout": str(f.layout), "parts": list(f.family.parts), "modules": len(f.modules)} for f in found]
    return {"surgery": name, "fused": rows}


def _nothing(checkpoint: Checkpoint, modules: Collection[str]) -> NothingMatched:
    """Why nothing was split: an unknown family, or one that is already split."""
    kind = checkpoint.config.get("model_type")
    known = sorted({t for f in FAMILIES for t in f.model_types})
    last = {m.rpartition(".")[2] for m in modules}
    family: Family | None = next((f for f in FAMILIES if kind in f.model_types), None)
    if family and set(family.parts) <= last:
        what, tip = "the checkpoint is already split", f"it has {', '.join(family.parts)}; there is nothing to do"
    elif not checkpoint.config:
        what, tip = "without config.json the layout of fused projections is not known", "put the model's config.json beside the shards"
    elif family:
        what, tip = f"no fused qkv of model type `{kind}` is here", f"its names would match {family.parent}\\.{family.fused}"
    elif fused := looks_fused(modules):
        what, tip = f"no layout is known for model type `{kind}`, of {fused[0]}", f"known are {', '.join(known)}"
    else:
        what, tip = f"nothing is fused here: model type `{kind}` has q, k and v apart", f"types with a fused qkv are {', '.join(known)}"
    return NothingMatched(what, where=[checkpoint.path], help=tip)


def _nothing_to_fuse(checkpoint: Checkpoint, modules: Collection[str]) -> NothingMatched:
    """Why nothing was fused: already fused, or no family that is."""
    kind = checkpoint.config.get("model_type")
    if detect(checkpoint.config, modules):
        return NothingMatched("the checkpoint is already fused", where=[checkpoint.path], help="there is nothing to do")
    known = sorted({t for f in FAMILIES for t in f.model_types})
    return NothingMatched(
        f"no parts of a fused qkv of model type `{kind}` are here", where=[checkpoint.path], help=f"types with one are {', '.join(known)}"
    )
