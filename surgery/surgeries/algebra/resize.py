"""A LoRA adapter of another rank, without its base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from ...adapters.fused import Rank
from ...adapters.low_rank import Factors, as_low_rank, factors_of, is_inside
from ...errors import AdapterError, listed, series
from ...files.peft import Adapter
from ...lazy.tensor import Input, Tensor, reshape, stored
from ...step import Option, step
from .ranks import Choice, EnergyOf, Kept, RankOf, choice, kept, notes_on, told
from .saying import as_adapter, config_of, whole_number

if TYPE_CHECKING:
    import torch


@step
def resize_adapter(
    adapter: Annotated[Adapter, Option("A LoRA adapter, here or on the Hub.", "ADAPTER")],
    *,
    rank: RankOf = None,
    energy: EnergyOf = None,
    max_rank: Annotated[int | None, Option("With --energy: at most this rank.", "N")] = None,
) -> Adapter:
    """Give a LoRA adapter another rank: for each module the best approximation; the report says what it keeps.

    The adapter has, for each module, the best approximation of what it adds that has this rank, or the least rank
    that keeps `energy` of the squares of its singular values, at most `max_rank`.

    The scale of each module stays, in alpha; modules of that rank or less stay as they are. The factors are float32:
    QR of both and the singular values of the small matrix between them, in float64. A convolution is approximated as
    the matrix (out, in * k...), and all experts of a parameter have one rank. With DoRA, it is what B @ A adds that is
    approximated; lengths stay.

    Reads the factors. Raises AdapterError for NaN, SurgeryError for a rank or energy that is none.
    """
    choose = choice(rank, energy, max_rank)
    plain = as_low_rank(adapter)
    if not plain.lora:
        tip = "what it holds whole has no rank"
        raise AdapterError("the adapter has no LoRA", where=[adapter.path], help=tip)
    factors = {module: factors_of(plain, module) for module in plain.lora}
    found, nothing = dict[str, Kept](), list[str]()
    made = _spooled(_shortened(plain, factors, choose, found, nothing))
    options = {"rank": rank, "energy": energy, "max_rank": max_rank}
    return _resized(adapter, plain, factors, made, found, nothing, options)


def _spooled(values: Iterator[tuple[str, torch.Tensor]]) -> Mapping[str, Tensor]:
    from ...evaluation.spool import spooled

    return spooled(values)


def _shortened(
    adapter: Adapter, factors: Mapping[str, Factors], choose: Choice, found: dict[str, Kept], nothing: list[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The new factors by module and part; what they keep goes into `found`, modules that add nothing into `nothing`."""
    from ...evaluation.shortening import joined, shortened

    for module, one in factors.items():
        where = f"{adapter.path}: {adapter.names[f'{module}.{one.parts[0]}']}"
        short = shortened(one.a, one.b, one.experts, choose, where)
        if short is None:
            found[module] = Kept(one.rank, 1.0, 0.0)
            continue
        found[module] = kept(short.rank, short.squares, sum(short.squares))
        nothing += [] if any(short.squares) else [module]
        a, b = joined(short)
        yield f"{module}.{one.parts[0]}", a
        yield f"{module}.{one.parts[1]}", b


def _resized(
    adapter: Adapter,
    plain: Adapter,
    factors: Mapping[str, Factors],
    made: Mapping[str, Tensor],
    found: Mapping[str, Kept],
    nothing: Sequence[str],
    options: Mapping[str, float | None],
) -> Adapter:
    """The adapter with the factors that were `made`; what these were made of reaches no output any more."""
    lora, ranks, gone = dict[str, dict[str, Tensor]](), dict[str, Rank](), set[Tensor]()
    for module, one in factors.items():
        lora[module] = dict(plain.lora[module])
        ranks[module] = Rank(found[module].rank, whole_number(one.scale * found[module].rank))
        for part, old in zip(one.parts, (one.a, one.b), strict=True):
            if new := made.get(f"{module}.{part}"):
                gone |= set(stored(old))
                lora[module][part] = reshape(new, _shape(old, new.shape, left=part == one.parts[1]))
    config = {**config_of([plain], ranks), "use_dora": bool(plain.config.get("use_dora"))}
    inside = {module for module in plain.lora if is_inside(plain, module)}
    done = as_adapter(adapter.path, config, lora, plain.whole, plain.parameters, inside)
    step = {"surgery": "resize_adapter", **{name: value for name, value in options.items() if value is not None}}
    return replace(
        done,
        inputs=tuple(_with(source, gone, done.tensors) for source in plain.inputs),
        dropped=plain.dropped,
        metadata=adapter.metadata or {"format": "pt"},
        files=adapter.files,
        history=(*adapter.history, step),
        notes=(*plain.notes, *_notes(found, nothing)),
        costs=told(found),
    )


def _notes(found: Mapping[str, Kept], nothing: Sequence[str]) -> list[str]:
    """What ranks keep; and where there is nothing to keep: factors are zero, or terms cancel but for rounding."""
    notes = notes_on({module: one for module, one in found.items() if module not in nothing})
    said = f"{len(nothing)} modules add nothing, or what cancels out, and are zero: {series(listed(nothing))}"
    return notes + ([said] if nothing else [])


def _shape(old: Tensor, new: Sequence[int], *, left: bool) -> tuple[int, ...]:
    """The shape of a factor of another rank: of B, or of A; a convolution's have its kernel, or ones."""
    return (old.shape[0], new[1], *old.shape[2:]) if left else (new[0], *old.shape[1:])


def _with(source: Input, gone: set[Tensor], made: Mapping[str, Tensor]) -> Input:
    """An input with what was made in the place of tensors that are gone, under names that there still are."""
    now = {name: tensor for name, tensor in source.tensors.items() if tensor not in gone}
    now |= {name: next(stored(made[name])) for name in source.tensors if name in made and name not in now}
    return replace(source, tensors={name: now[name] for name in source.tensors if name in now})
