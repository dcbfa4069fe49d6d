"""LoRA from the difference of two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any

from ...adapters.fused import Rank
from ...adapters.lora import matrix_of
from ...adapters.low_rank import EMBEDDING, LINEAR
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NothingMatched, SurgeryError, listed, series
from ...files.called import called
from ...files.peft import Adapter
from ...lazy.tensor import Input, Shape, Tensor, narrow, reshape, unrounded
from ...names import compiled, natural
from ...step import Option, step
from ..injecting.modules import Kind
from .facing import Facing, faced
from .ranks import Choice, EnergyOf, Kept, RankOf, choice, kept, notes_on, told
from .rest import REST, Rest, bias_of, rest_of
from .saying import as_adapter, config_of_new

if TYPE_CHECKING:
    import torch

    from ...evaluation.extraction import Extracted, Pair

OnTensor = Callable[[str, int, int], None]
MOST = 64  # the rank at which --energy ends, where none is given
MEMORY = 96_000_000  # bytes of differences that all workers together hold


@step
def extract(
    base: Annotated[Checkpoint, Option("The checkpoint that the adapter is for.", "BASE")],
    tuned: Annotated[Checkpoint, Option("What was trained of it, of the same names.", "TUNED")],
    *,
    rank: RankOf = None,
    energy: EnergyOf = None,
    max_rank: Annotated[int | None, Option("With --energy: at most this rank; 64 if not given.", "N")] = None,
    rest: Annotated[
        str,
        Option(
            "What differs and gets no LoRA: refuse, hold it whole, or leave it as it is in BASE.",
            "error|save|leave",
            among=("error", "save", "leave"),
        ),
    ] = "error",
    only: Annotated[str | None, Option("LoRA on the modules whose whole name matches alone.", "REGEX")] = None,
    except_: Annotated[str | None, Option("No LoRA on the modules whose whole name matches.", "REGEX")] = None,
    embeddings: Annotated[bool, Option("LoRA on embeddings, too, where they are not tied.")] = False,
    seed: Annotated[int, Option("The method's random numbers follow from it.", "N")] = 0,
    workers: int | None = None,
    memory: int | None = None,
    on_tensor: OnTensor | None = None,
) -> Adapter:
    """Make a LoRA adapter of the difference of two checkpoints, in bounded memory; the report says what it keeps.

    It makes of `base` what `tuned` is, as far as a low rank can.

        W' - W  (out, in)  ->  B (out, rank), A (rank, in), of alpha = rank: B @ A is the best approximation

    `rank` is that of each module, or what its difference has, if less; or each gets the least that keeps `energy` of
    the squares of the singular values, at most `max_rank` (64, if not given). LoRA is put on linear modules, Conv1D,
    convolutions of one group, the head, and all experts of a layer, which share a rank; with `embeddings` on those
    that are not tied. `only` and `except_` are regular expressions over whole module names, of which it is restricted
    to what they leave. What else differs is, by `rest`: an error; held whole ("save": norms, embeddings and modules
    without LoRA in modules_to_save, biases by bias); or left as it is in the base ("leave", and a note names it).

    Neither model is built: both are read in blocks of rows, four times, subtracted in float32, and decomposed by a
    randomised method whose numbers follow from `seed` and the module's name. Codes of a quantised checkpoint are read
    as what they mean.

    `memory`, in bytes, bounds the differences that all `workers` hold together, 96 MB if not given; neither changes a
    byte of the result. `on_tensor` is called after each module, with its name, how many bytes of the base's it is of,
    and how many there are in all.

    Raises AdapterError for tensors that only one has, or of other shapes, for models of two types, where nothing
    differs and for NaN; SurgeryError for options that say nothing; NothingMatched for a pattern that leaves nothing.
    """
    choose = choice(rank, energy, max_rank)
    if rest not in REST:
        raise SurgeryError(f"`{rest}` is no way with what gets no LoRA", help=f"{', '.join(REST)}")
    two = faced(base, tuned)
    lora = _chosen(two, only, except_, embeddings=embeddings)
    other = rest_of(two, {target.weight for target in lora.values()}, rest)
    found: dict[str, Kept] = {}
    made = _spooled(_factors(two, lora, choose, seed, (workers, memory), found, on_tensor))
    if not found and not other.whole:
        tip = "give the base first, and then what was trained of it"
        raise AdapterError("the two checkpoints do not differ", where=[base.path, tuned.path], help=tip)
    return _adapter(two, lora, other, made, found, _told(rank, energy, max_rank, rest, only, except_, seed))


def _told(*options: Any) -> dict[str, Any]:
    names = ("rank", "energy", "max_rank", "rest", "only", "except", "seed")
    return {name: value for name, value in zip(names, options, strict=True) if value not in (None, "error")}


@dataclass(frozen=True, slots=True)
class Target:
    """What LoRA is put on: the base's tensor `weight`, a matrix, a kernel, or with `experts` one of so many matrices.

    `parts` are what PEFT calls A and B on it; `turned`: what they add is the transpose of what is stored.
    """

    weight: str
    shape: Shape
    parts: tuple[str, str] = LINEAR
    turned: bool = False
    experts: int = 0


def _chosen(two: Facing, only: str | None, except_: str | None, *, embeddings: bool) -> dict[str, Target]:
    """What LoRA is put on, where it differs, by name in memory."""
    rules = [compiled(pattern) if pattern is not None else None for pattern in (only, except_)]
    able = _able(two, embeddings=embeddings)
    chosen = {
        name: target
        for name, target in able.items()
        if (rules[0] is None or rules[0].fullmatch(name)) and not (rules[1] and rules[1].fullmatch(name))
    }
    if not chosen and (only is not None or except_ is not None):
        tip = f"modules are such as {series(listed(sorted(able, key=natural), 3))}"
        raise NothingMatched("the patterns leave no module to put LoRA on", help=f"{tip}; --only, --except")
    return chosen


def _able(two: Facing, *, embeddings: bool) -> dict[str, Target]:
    """What LoRA can be put on: tensors of numbers and of one shape in both, each under one name."""
    kinds = {Kind.LINEAR, Kind.CONV1D, Kind.CONVOLUTION, *([Kind.EMBEDDING] if embeddings else [])}
    found = {}
    for name, module in two.modules.items():
        if module.kind in kinds and module.groups == 1 and name in two.weights:
            parts = EMBEDDING if module.kind is Kind.EMBEDDING else LINEAR
            turned = module.kind in (Kind.CONV1D, Kind.EMBEDDING)  # stored as (in, out), or looked up by rows
            found[name] = Target(two.weights[name], module.shape, parts, turned)
    for name, (weight, parameter, last) in two.parameters.items():
        found[name] = Target(weight, two.pair(weight)[0].shape, LINEAR, not last, parameter.experts)
    return {name: one for name, one in found.items() if two.fits(one.weight) and one.weight not in two.shared}


def _spooled(values: Iterator[tuple[str, torch.Tensor]]) -> Mapping[str, Tensor]:
    from ...evaluation.spool import spooled

    return spooled(values)


def _factors(
    two: Facing,
    lora: Mapping[str, Target],
    choose: Choice,
    seed: int,
    room: tuple[int | None, int | None],
    found: dict[str, Kept],
    on_tensor: OnTensor | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """A and B by module and part, module by module in their order; what they keep goes into `found`. `room` are
    workers and bytes.
    """
    from ...evaluation.extraction import all_extracted, joined

    most = choose.rank or choose.most or MOST
    bounded = replace(choose, most=most) if choose.energy is not None else choose
    count, memory = room[0] or min(2, os.cpu_count() or 1), MEMORY if room[1] is None else room[1]
    sizes = {name: two.pair(target.weight)[0].nbytes for name, target in lora.items()}
    total = sum(sizes.values())
    pairs = [pair for name, target in lora.items() for pair in _pairs(two, name, target, seed)]
    products = all_extracted(pairs, most, bounded, memory // count, count)
    for name, target in lora.items():
        mine = list(islice(products, target.experts or 1))
        if on_tensor:
            on_tensor(name, sizes[name], total)
        there = [product for product in mine if product is not None]
        if not there:
            continue
        found[name] = _kept(there)
        a, b = joined(mine, target.shape[1:] if target.experts else (), turned=target.turned)
        yield f"{name}.{target.parts[0]}", a
        yield f"{name}.{target.parts[1]}", b


def _kept(products: Sequence[Extracted]) -> Kept:
    """What is told of a module, or of those experts of a parameter together that differ."""
    each = [kept(one.rank, one.squares, one.total) for one in products]
    total = sum(one.total for one in products)
    share = sum(one.share * product.total for one, product in zip(each, products, strict=True)) / total
    return Kept(max(one.rank for one in each), share, max(one.following for one in each))


def _pairs(two: Facing, name: str, target: Target, seed: int) -> list[Pair]:
    """The weights as matrices, one for each expert."""
    from ...evaluation.extraction import Pair

    base, tuned = map(unrounded, two.pair(target.weight))
    if not target.experts:
        flat = matrix_of(base.shape)
        return [Pair(reshape(base, flat), reshape(tuned, flat), target.weight, f"{seed} {name}")]
    return [
        Pair(_expert(base, i), _expert(tuned, i), f"{target.weight}, expert {i}", f"{seed} {name} {i}")
        for i in range(target.experts)
    ]


def _expert(stack: Tensor, which: int) -> Tensor:
    return reshape(narrow(stack, 0, which, 1), stack.shape[1:])


def _adapter(
    two: Facing,
    lora: Mapping[str, Target],
    other: Rest,
    made: Mapping[str, Tensor],
    found: Mapping[str, Kept],
    options: Mapping[str, Any],
) -> Adapter:
    parts = {name: _shaped(name, lora[name], made) for name in found}
    ranks = {name: Rank(one.rank, one.rank) for name, one in found.items()}
    modules = found.keys() - two.parameters.keys()
    config = config_of_new(two.base, two.modules, modules, ranks)
    config |= {"modules_to_save": list(other.modules) or None, "bias": bias_of(other, modules)}
    config |= {"ensure_weight_tying": other.tied}
    config["target_parameters"] = sorted(found.keys() & two.parameters.keys(), key=natural) or None
    done = as_adapter(two.base.path, config, parts, other.whole, found.keys() & two.parameters.keys())
    step = {"surgery": "extract", "base": called(two.base.path), "tuned": called(two.tuned.path), **options}
    equal = len(lora) - len(found)
    notes = [*two.notes, *notes_on(found), *other.notes]
    notes += [f"{equal} modules do not differ, and have no LoRA"] if equal else []
    return replace(
        done,
        inputs=tuple(_input(side) for side in (two.base, two.tuned)),
        metadata={"format": "pt"},
        files=two.files,
        history=(step,),
        notes=tuple(notes),
        costs=told(found),
    )


def _shaped(name: str, target: Target, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The factors in the shapes that PEFT has: a convolution's A has its kernel, B ones."""
    a, b = (made[f"{name}.{part}"] for part in target.parts)
    if len(target.shape) > 2 and not target.experts:
        a = reshape(a, (a.shape[0], *target.shape[1:]))
        b = reshape(b, (*b.shape, *(1 for _ in target.shape[2:])))
    return dict(zip(target.parts, (a, b), strict=True))


def _input(side: Checkpoint) -> Input:
    """What was read, for the identity: its tensors reach the adapter as differences alone."""
    files = tuple(file for source in side.inputs for file in source.files)
    return Input("base", side.path, files, {})
