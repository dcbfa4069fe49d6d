"""Split fused projections."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping

from ..checkpoint import Checkpoint
from ..errors import LayoutError, NothingMatched, NotSupported, PlanError, listed
from ..layouts import FAMILIES, Family, Fused, detect, split_axis
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
    _check_companions(checkpoint, {m for fused in found for m in fused.modules})
    tensors, weight_map = dict(checkpoint.tensors), dict(checkpoint.weight_map)
    for fused in found:
        biased = [m for m in fused.modules if f"{m}.bias" in checkpoint.tensors]
        if biased and len(biased) != len(fused.modules):
            bare = [m for m in fused.modules if m not in biased]
            raise LayoutError(
                "some fused projections have a bias, and some have none",
                where=[f"without: {', '.join(listed(bare))}"],
                help="the checkpoint is incomplete; fetch it again",
            )
        for module in fused.modules:
            for suffix in SUFFIXES:
                name = module + suffix
                if name in tensors:
                    shard = weight_map.pop(name)
                    for part, value in zip(fused.family.parts, _parts(checkpoint, name, tensors.pop(name), fused), strict=True):
                        new = f"{module.rpartition('.')[0]}.{part}{suffix}".removeprefix(".")
                        if new in checkpoint.tensors:
                            raise PlanError("a part would take the name of another tensor", where=[f"{name} -> {new}"])
                        tensors[new], weight_map[new] = value, shard
    return checkpoint.with_step(_step(found), tensors=tensors, weight_map=weight_map)


def _parts(checkpoint: Checkpoint, name: str, tensor: Tensor, fused: Fused) -> list[Tensor]:
    axis = fused.family.axis if len(tensor.shape) > 1 else 0
    if len(tensor.shape) <= axis or tensor.shape[axis] != fused.layout.rows:
        raise LayoutError(
            f"the fused qkv does not fit the layout of model type `{fused.model_type}`",
            where=[
                f"{checkpoint.weight_map[name]}: {name}",
                f"{tensor.shape} along axis {axis} is not {fused.layout.rows} = {fused.layout}",
            ],
            help="the head counts in config.json and the tensor's shape contradict each other; one of them is not this model's",
        )
    return split_axis(tensor, axis, fused.layout)


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


def _step(found: list[Fused]) -> Mapping[str, object]:
    rows = [{"model_type": f.model_type, "layout": str(f.layout), "parts": list(f.family.parts), "modules": len(f.modules)} for f in found]
    return {"surgery": "split-qkv", "fused": rows}


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
        what, tip = f"no fused qkv of model type `{kind}` is here", f"its names would match {family.module}"
    else:
        what, tip = f"no layout is known for model type `{kind}`", f"known are {', '.join(known)}"
    return NothingMatched(what, where=[checkpoint.path], help=tip)
