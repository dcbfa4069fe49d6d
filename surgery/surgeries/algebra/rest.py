"""What differs between two checkpoints and gets no LoRA: held whole, left, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ...errors import NotSupported, listed, series
from ...lazy.dtypes import ARITHMETIC
from ...lazy.tensor import Tensor
from ...names import natural
from .facing import Facing

REST = ("error", "save", "leave")


@dataclass(frozen=True)
class Rest:
    """What the adapter holds whole, by name in memory; the modules of it that are saved, those whose biases are alone,
    and whether tied ones are among them.
    """

    whole: Mapping[str, Tensor] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()
    tied: bool = False
    notes: tuple[str, ...] = ()


def rest_of(two: Facing, weights: Collection[str], how: str) -> Rest:
    """What becomes of the tensors that differ and are not the `weights` that get LoRA. Reads them, and raises
    NotSupported where `how` is "error" and there are such, or where PEFT has no way to hold one.
    """
    found = [name for name in two.tensors if name not in weights and _differs(two, name)]
    names = sorted(found, key=natural)
    if not names:
        return Rest()
    if how == "error":
        raise _refused(two, names)
    if how == "leave":
        return Rest(notes=(f"left as they are in the base: {series(listed(names))}",))
    return _saved(two, names)


def _differs(two: Facing, name: str) -> bool:
    from ...evaluation.compare import same
    from ...evaluation.extraction import Pair, differ

    base, tuned = two.pair(name)
    if base.shape != tuned.shape:
        return True
    if not all(side.dtype in ARITHMETIC for side in (base, tuned)):
        return not same(base, tuned)
    return differ(Pair(base, tuned, name, name))


def bias_of(rest: Rest, lora: Collection[str]) -> str:
    """PEFT's word for whose biases are trained."""
    return "none" if not rest.biases else "lora_only" if set(rest.biases) <= set(lora) else "all"


def _saved(two: Facing, names: list[str]) -> Rest:
    """The tensors in modules to save, or as trained biases."""
    every = {inside: name for name, inside in two.memory.items()}
    biases = [name for name in names if _is_bias(two, name, names)]
    modules = list(dict.fromkeys(_module(two.memory[name]) for name in names if name not in biases))
    if odd := [module for module in modules if not _is_one(module, every)]:
        inside = [name for name in names if _module(two.memory[name]) in odd]
        tip = "--rest leave leaves them as they are in the base; merged checkpoints need no adapter"
        what = f"{len(inside)} tensors that differ belong to no module that PEFT could hold whole"
        raise NotSupported(what, where=listed([f"{two.base.path}: {name}" for name in inside]), help=tip)
    whole = {two.memory[name]: two.pair(name)[1] for name in biases}
    for module in modules:
        for end in ("weight", "bias"):
            if (name := every.get(f"{module}.{end}")) in two.tensors:
                whole[f"{module}.{end}"] = two.pair(str(name))[1]
    tied = [two.memory[other] for name in names for other in two.shared.get(name, ())]
    whole |= {two.memory[o]: two.pair(name)[1] for name in names for o in two.shared.get(name, ())}
    modules += [_module(name) for name in tied]
    alone = tuple(_module(two.memory[name]) for name in biases)
    return Rest(whole, tuple(modules), alone, bool(tied), tuple(_notes(two, whole, names)))


def _is_bias(two: Facing, name: str, names: list[str]) -> bool:
    """Whether it is the bias of a module whose weight is a matrix and is not saved along."""
    inside = _module(two.memory[name])
    module = two.modules.get(inside)
    return module is not None and two.memory[name].endswith(".bias") and two.weights.get(inside) not in names


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_one(module: str, names: Collection[str]) -> bool:
    """Whether the module has a weight or a bias, or both, and holds nothing else."""
    inside = {name.removeprefix(f"{module}.") for name in names if name.startswith(f"{module}.")}
    return bool(module) and inside <= {"weight", "bias"}


def _notes(two: Facing, whole: Mapping[str, Tensor], names: list[str]) -> list[str]:
    size = sum(tensor.nbytes for tensor in {id(t): t for t in whole.values()}.values())
    notes = [f"held whole, {size / 1e6:.1f} MB: {series(listed(sorted(whole, key=natural)))}"]
    grown = [f"{name} {two.pair(name)[0].shape} -> {two.pair(name)[1].shape}" for name in names if not two.fits(name)]
    if grown:
        tip = "PEFT needs the base resized first (resize_token_embeddings), surgery merge does it"
        notes.append(f"of another shape than the base's: {series(listed(grown))}; {tip}")
    return notes


def _refused(two: Facing, names: list[str]) -> NotSupported:
    size = sum(two.pair(name)[1].nbytes for name in names)
    rows = [f"{name} {_shapes(two, name)}" for name in names]
    tip = (
        f"--rest save holds them whole ({size / 1e6:.1f} MB, in modules_to_save or as biases), --rest leave leaves them"
        " as they are in the base"
    )
    what = f"{len(names)} tensors differ that are no weights of modules that LoRA is put on"
    return NotSupported(what, where=[two.tuned.path, *listed(rows)], help=tip)


def _shapes(two: Facing, name: str) -> str:
    base, tuned = two.pair(name)
    return f"{tuned.shape}" if base.shape == tuned.shape else f"{tuned.shape}, in the base {base.shape}"
