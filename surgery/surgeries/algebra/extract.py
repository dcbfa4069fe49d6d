"""LoRA from the difference of two checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...adapters.fused import Rank
from ...adapters.lora import matrix_of
from ...adapters.low_rank import EMBEDDING, LINEAR
from ...checkpoint import Checkpoint
from ...errors import AdapterError, NothingMatched, SurgeryError, listed, series
from ...files.called import called
from ...files.peft import Adapter
from ...lazy.tensor import Input, Tensor, reshape
from ...names import compiled, natural
from ...opened import takes_opened
from ..injecting.modules import Kind, Module
from .facing import Facing, faced
from .ranks import Choice, Kept, choice, kept, notes_on, told
from .rest import REST, Rest, bias_of, rest_of
from .saying import as_adapter, config_of_new

if TYPE_CHECKING:
    import torch

    from ...evaluation.extraction import Pair

MOST = 64  # the rank at which --energy ends, where none is given
MEMORY = 96_000_000  # bytes of differences that all workers together hold


@takes_opened
def extract(
    base: Checkpoint,
    tuned: Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    max_rank: int | None = None,
    rest: str = "error",
    only: str | None = None,
    except_: str | None = None,
    embeddings: bool = False,
    seed: int = 0,
    workers: int | None = None,
) -> Adapter:
    """A LoRA adapter for `base` that makes of it what `tuned` is, as far as a low rank can.

        W' - W  (out, in)  ->  B (out, rank), A (rank, in), of alpha = rank: B @ A is the best approximation

    `rank` is that of each module, or what its difference has, if less; or each gets the least that keeps `energy` of
    the squares of the singular values, at most `max_rank` (64, if not given). LoRA is put on linear modules, Conv1D and
    convolutions of one group, also on the head, and with `embeddings` on those; `only` and `except_` are regular
    expressions over whole module names, of which it is restricted to what they leave. What else differs is, by `rest`:
    an error; held whole ("save": norms, embeddings and modules without LoRA in modules_to_save, biases by bias); or
    left as it is in the base ("leave", and a note names it).

    Neither model is built: both are read in blocks of rows, four times, subtracted in float32, and decomposed by a
    randomised method whose numbers follow from `seed` and the module's name. Codes of a quantised checkpoint are read
    as what they mean.

    Raises AdapterError for tensors that only one has, or of other shapes, for models of two types, where nothing
    differs and for NaN; SurgeryError for options that say nothing; NothingMatched for a pattern that leaves nothing.
    """
    choose = choice(rank, energy, max_rank)
    if rest not in REST:
        raise SurgeryError(f"`{rest}` is no way with what gets no LoRA", help=f"{', '.join(REST)}")
    two = faced(base, tuned)
    lora = _chosen(two, only, except_, embeddings=embeddings)
    other = rest_of(two, lora, rest)
    found: dict[str, Kept] = {}
    made = _spooled(_factors(two, lora, choose, seed, workers, found))
    if not found and not other.whole:
        tip = "give the base first, and then what was trained of it"
        raise AdapterError("the two checkpoints do not differ", where=[base.path, tuned.path], help=tip)
    return _adapter(two, lora, other, made, found, _told(rank, energy, max_rank, rest, only, except_, seed))


def _told(*options: Any) -> dict[str, Any]:
    names = ("rank", "energy", "max_rank", "rest", "only", "except", "seed")
    return {name: value for name, value in zip(names, options, strict=True) if value not in (None, "error")}


def _chosen(two: Facing, only: str | None, except_: str | None, *, embeddings: bool) -> dict[str, Module]:
    """The modules that LoRA is put on, where they differ, by name in memory."""
    kinds = {Kind.LINEAR, Kind.CONV1D, Kind.CONVOLUTION, *([Kind.EMBEDDING] if embeddings else [])}
    able = {
        name: module
        for name, module in two.modules.items()
        if module.kind in kinds
        and module.groups == 1
        and (weight := two.weights.get(name)) is not None
        and two.fits(weight)
        and weight not in two.shared
    }
    rules = [compiled(pattern) if pattern is not None else None for pattern in (only, except_)]
    chosen = {
        name: module
        for name, module in able.items()
        if (rules[0] is None or rules[0].fullmatch(name)) and not (rules[1] and rules[1].fullmatch(name))
    }
    if not chosen and (only is not None or except_ is not None):
        tip = f"modules are such as {series(listed(sorted(able, key=natural), 3))}"
        raise NothingMatched("the patterns leave no module to put LoRA on", help=f"{tip}; --only, --except")
    return chosen


def _spooled(values: Iterator[tuple[str, torch.Tensor]]) -> Mapping[str, Tensor]:
    from ...evaluation.spool import spooled

    return spooled(values)


def _factors(
    two: Facing,
    lora: Mapping[str, Module],
    choose: Choice,
    seed: int,
    workers: int | None,
    found: dict[str, Kept],
) -> Iterator[tuple[str, torch.Tensor]]:
    """A and B by module and part, module by module in their order; what they keep goes into `found`."""
    from ...evaluation.arithmetic import exact
    from ...evaluation.extraction import extracted

    most = choose.rank or choose.most or MOST
    bounded = replace(choose, most=choose.most or MOST) if choose.energy is not None else choose
    count = workers or min(2, os.cpu_count() or 1)
    pairs = [_pair(two, name, seed) for name in lora]
    one = partial(extracted, most=most, choose=bounded, held=MEMORY // count)
    with exact(), ThreadPoolExecutor(count) as crew:
        for (name, module), product in zip(lora.items(), crew.map(one, pairs), strict=True):
            if product is None:
                continue
            found[name] = kept(product.rank, product.squares, product.total)
            left, right = product.left, product.right
            if module.kind in (Kind.CONV1D, Kind.EMBEDDING):  # stored as (in, out), or looked up by rows
                left, right = right.T, left.T
            names = parts_of(module)
            yield f"{name}.{names[0]}", right
            yield f"{name}.{names[1]}", left


def _pair(two: Facing, module: str, seed: int) -> Pair:
    """The module's weights as matrices."""
    from ...evaluation.extraction import Pair

    name = two.weights[module]
    base, tuned = (reshape(side, matrix_of(side.shape)) for side in two.pair(name))
    return Pair(base, tuned, name, f"{seed} {module}")


def parts_of(module: Module) -> tuple[str, str]:
    """What PEFT calls A and B on it."""
    return EMBEDDING if module.kind is Kind.EMBEDDING else LINEAR


def _adapter(
    two: Facing,
    lora: Mapping[str, Module],
    other: Rest,
    made: Mapping[str, Tensor],
    found: Mapping[str, Kept],
    options: Mapping[str, Any],
) -> Adapter:
    modules = {name: module for name, module in lora.items() if name in found}
    parts = {name: _shaped(name, module, made) for name, module in modules.items()}
    ranks = {name: Rank(found[name].rank, found[name].rank) for name in modules}
    config = config_of_new(two.base, two.modules, modules, ranks)
    config |= {"modules_to_save": list(other.modules) or None, "bias": bias_of(other, modules)}
    config["ensure_weight_tying"] = other.tied
    done = as_adapter(two.base.path, config, parts, other.whole, ())
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


def _shaped(name: str, module: Module, made: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The module's factors in the shapes that PEFT has: a convolution's A has its kernel, B ones."""
    a, b = (made[f"{name}.{part}"] for part in parts_of(module))
    if module.kind is Kind.CONVOLUTION:
        kernel = module.shape[2:]
        a = reshape(a, (a.shape[0], *module.shape[1:]))
        b = reshape(b, (*b.shape, *(1 for _ in kernel)))
    return dict(zip(parts_of(module), (a, b), strict=True))


def _input(side: Checkpoint) -> Input:
    """What was read, for the identity: its tensors reach the adapter as differences alone."""
    files = tuple(file for source in side.inputs for file in source.files)
    return Input("base", side.path, files, {})
