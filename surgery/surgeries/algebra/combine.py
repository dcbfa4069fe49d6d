"""Several LoRA adapters as one, without their base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from ...adapters.fused import Rank
from ...adapters.lora import BIAS
from ...adapters.low_rank import Factors, alike, as_low_rank, factors_of, is_inside, stacked, summed
from ...checkpoint import of_adapter
from ...errors import AdapterError, NotSupported, SurgeryError, listed, series
from ...evaluation.read import same_content
from ...files.called import called
from ...files.peft import CONFIG, Adapter
from ...lazy.dtypes import F32
from ...lazy.tensor import File, Tensor, Zeros
from ...names import natural
from ...step import Option, step
from .resize import resize_adapter
from .saying import as_adapter, config_of, whole_number
from .whole import held_whole

CARD = "README.md"
EMBEDDING = "embed_tokens"  # whose tokens a list of them are of
AVERAGED = (
    "A's and B's were averaged apart, as asked: what the result adds to a weight is not the average of what the"
    " adapters add, which --weights alone gives"
)


@step
def combine(
    adapters: Annotated[Sequence[Adapter], Option("LoRA adapters, here or on the Hub.", "ADAPTER")],
    weights: Annotated[
        Sequence[float] | None,
        Option("One factor for each adapter, such as 0.7,0.3; else 1.", "W,W,…", each="adapters"),
    ] = None,
    *,
    rank: Annotated[
        int | None,
        Option("The best approximation of that rank; if not given, ranks add up: exact.", "N", ("--rank", "-r")),
    ] = None,
    average_factors: Annotated[
        bool, Option("Sum A's and B's apart, as AdapterHub does: not the sum of what adapters do.")
    ] = False,
    any_base: Annotated[bool, Option("Combine adapters that name different bases.")] = False,
) -> Adapter:
    """Make one LoRA adapter that does what the weighted sum of adapters does.

    It adds to each weight the sum of what the adapters add, each times its weight: 1, if none is given.

        A (Σ r, in) = the A's, one below the other        B (out, Σ r) = the B's side by side, times weight and scale

    Exact: B is multiplied in float32 and rounded once, and where all weights times scales of a module are one number
    it stands in alpha, and nothing is rounded. Modules that only some of the adapters have keep those ranks. Of that,
    `rank` gives the best of this rank, as `resize_adapter` does. Biases, saved modules and trained tokens are taken
    over where one adapter has them, with weight 1, or all have the same.

    `average_factors` is something else, what AdapterHub's `average_adapter` does: Σ weight * A and Σ weight * B apart,
    for adapters of one rank.

    Kinds that are low-rank by themselves are taken as LoRA (`adapters/low_rank_kinds.py`).

    Raises NotSupported for DoRA and for kinds that are not, AdapterError for adapters of different bases
    (unless `any_base`) or shapes. Reads what several adapters hold whole; with `rank`, the factors.
    """
    if isinstance(adapters, Adapter) or not adapters:
        raise SurgeryError("there is nothing to combine", help="give a list of adapters")
    weights = _weights(adapters, weights)
    for one in adapters:
        _check(one)
    if not any_base:
        _check_bases(adapters)
    plain = [as_low_rank(one) for one in adapters]
    for one in plain:
        _check_dora(one)
    made = _combined(list(adapters), plain, weights, average=average_factors)
    return made if rank is None else resize_adapter(made, rank=rank)


def _check_tokens(adapters: Sequence[Adapter]) -> None:
    """Raise NotSupported where one holds a module whole of which another trains tokens: PEFT loads no such adapter."""
    said = [(one, one.config.get("trainable_token_indices") or ()) for one in adapters]
    trained = {
        name: one for one, found in said if found for name in (found if isinstance(found, Mapping) else [EMBEDDING])
    }
    held = {name: one for one in adapters for name in one.config.get("modules_to_save") or ()}
    for name in trained.keys() & held.keys():
        raise NotSupported(
            f"one adapter holds {name} whole, and one trains tokens of it",
            where=[held[name].path, trained[name].path],
            help="merge them one after the other: surgery merge",
        )


def _combined(given: list[Adapter], plain: list[Adapter], weights: list[float], *, average: bool) -> Adapter:
    whole, dropped = held_whole(plain, weights)
    modules = sorted({module for one in plain for module in one.lora}, key=natural)
    ranks, lora = dict[str, Rank](), dict[str, dict[str, Tensor]]()
    with_bias = any(one.config.get("lora_bias") for one in plain)
    for module in modules:
        found = [
            (one.path, factors_of(one, module), weight)
            for one, weight in zip(plain, weights, strict=True)
            if module in one.lora
        ]
        _check_shapes(module, found)
        if average:
            _check_averaged(module, found, plain)
        pairs = [(factors, weight) for _, factors, weight in found]
        ranks[module], lora[module] = (_averaged if average else _stacked)(pairs, with_bias=with_bias)
    parameters = {name for one in plain for name in one.parameters}
    inside = {module for one in plain for module in one.lora if is_inside(one, module)}
    path = f"{given[0].path} and {len(given) - 1} more"
    _check_tokens(plain)
    made = as_adapter(path, config_of(plain, ranks), lora, whole, parameters, inside)
    files, said = _files(given)
    step = {
        "surgery": "combine",
        "adapters": [
            {"name": called(one.path), "digest": one.digest, "weight": weight}
            for one, weight in zip(given, weights, strict=True)
        ],
        **({"average_factors": True} if average else {}),
    }
    return replace(
        made,
        inputs=tuple(source for one in plain for source in one.inputs),
        dropped={**dropped, **{f"{one.path}: {name}": tensor for one in plain for name, tensor in one.dropped.items()}},
        metadata={"format": "pt"},
        files=files,
        history=(step,),
        notes=(*(note for one in plain for note in one.notes), *_notes(ranks, len(plain), average=average), *said),
    )


def _stacked(pairs: Sequence[tuple[Factors, float]], *, with_bias: bool) -> tuple[Rank, dict[str, Tensor]]:
    """Rank, alpha and tensors of the sum on one module: alpha is rank, unless one number is common to all."""
    numbers = [weight * factors.scale for factors, weight in pairs]
    common = numbers[0] if len(set(numbers)) == 1 and numbers[0] > 0 else 1.0
    parts = [(factors, number / common) for (factors, _), number in zip(pairs, numbers, strict=True)]
    a, b = stacked(parts)
    first = pairs[0][0]
    made = dict(zip(first.parts, (a, b), strict=True))
    if with_bias and first.experts == 1:
        made[BIAS] = _bias(parts)
    rank = sum(factors.rank for factors, _ in pairs)
    return Rank(rank, whole_number(common * rank)), made


def _averaged(pairs: Sequence[tuple[Factors, float]], *, with_bias: bool) -> tuple[Rank, dict[str, Tensor]]:
    """Σ weight * A and Σ weight * B, apart."""
    first = pairs[0][0]
    made = dict(
        zip(
            first.parts,
            (summed([(one.a, weight) for one, weight in pairs]), summed([(one.b, weight) for one, weight in pairs])),
            strict=True,
        )
    )
    if with_bias and first.experts == 1:
        made[BIAS] = _bias(pairs)
    return Rank(first.rank, whole_number(first.scale * first.rank)), made


def _bias(parts: Sequence[tuple[Factors, float]]) -> Tensor:
    """B's own bias, of those that have one; zeros where none has."""
    found = [(factors.bias, number) for factors, number in parts if factors.bias is not None]
    if not found:
        return Zeros(F32, (parts[0][0].b.shape[0],))
    if len(found) == 1 and found[0][1] == 1:
        return found[0][0]
    biases = alike([bias for bias, _ in found])
    return summed([(bias, number) for bias, (_, number) in zip(biases, found, strict=True)])


def _weights(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    """A finite number for each adapter."""
    made = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if len(made) != len(adapters):
        raise SurgeryError(f"{len(made)} weights for {len(adapters)} adapters", help="give one weight for each adapter")
    if not all(map(math.isfinite, made)):
        what = f"the weights {', '.join(map(str, made))} are not all finite numbers"
        raise SurgeryError(what, help="give numbers, such as 0.7,0.3")
    return made


def _check(adapter: Adapter) -> None:
    """Raise NotSupported for weights beside the adapter that were not read."""
    if adapter.unread:
        where = listed([f"{adapter.path}/{name}" for name in adapter.unread])
        tip = "take them away where they are no part of the adapter; else merge them along: surgery merge --with FILE"
        raise NotSupported("weights lie beside the adapter that would be passed over", where=where, help=tip)


def _check_dora(adapter: Adapter) -> None:
    if adapter.config.get("use_dora"):
        raise NotSupported(
            "DoRA gives the rows of a weight new lengths, and lengths of two adapters have no sum",
            where=[f"{adapter.path}/{CONFIG}"],
            help="merge one of them into the base, extract it as LoRA (surgery extract), and combine that",
        )


def _check_bases(adapters: Sequence[Adapter]) -> None:
    """Raise AdapterError for adapters that name different bases; a path on another machine is told by its end."""
    said = {one.path: str(one.config.get("base_model_name_or_path") or "") for one in adapters}
    if len({base.rstrip("/").rpartition("/")[2].lower() for base in said.values() if base}) > 1:
        rows = [f"{path}: base_model_name_or_path = {base!r}" for path, base in said.items()]
        tip = "what one adds to a weight means nothing in another model; if it is the same one under another name:"
        raise AdapterError("the adapters were trained on different bases", where=rows, help=f"{tip} --any-base")


def _check_shapes(module: str, found: Sequence[tuple[str, Factors, float]]) -> None:
    first = found[0][1]
    if any(one.shape != first.shape for _, one, _ in found):
        rows = [f"{path}: {one.said}" for path, one, _ in found]
        tip = "they belong to bases of different sizes, or one of them to a resized one"
        raise AdapterError(f"the adapters do not fit each other on {module}", where=rows, help=tip)


def _check_averaged(module: str, found: Sequence[tuple[str, Factors, float]], plain: Sequence[Adapter]) -> None:
    """Raise AdapterError unless all have this module, with one rank and scale: averages of others mean nothing."""
    if len(found) < len(plain) or len({(one.rank, one.scale) for _, one, _ in found}) > 1:
        rows = [f"{path}: rank {one.rank}, scale {one.scale}" for path, one, _ in found]
        rows += [f"{one.path}: without LoRA there" for one in plain if module not in one.lora]
        tip = "leave --average-factors away: the weighted sum of what they do takes any ranks"
        raise AdapterError(f"factors of {module} cannot be averaged apart: they differ", where=rows, help=tip)


def _files(given: Sequence[Adapter]) -> tuple[dict[str, File | bytes], list[str]]:
    """What lies beside the adapters and is the same beside all, but for model cards; and what is said of the rest."""
    sets = [of_adapter(one).files if one.inputs else {} for one in given]
    names = [name for name in sets[0] if name not in (CONFIG, CARD) and not name.startswith(".surgery")]
    kept = {name: sets[0][name] for name in names if all(_same(one.get(name), sets[0][name]) for one in sets[1:])}
    rest = sorted({name for one in sets for name in one} - kept.keys() - {CONFIG})
    note = f"left out, since the adapters have different ones, or not all of them one: {series(listed(rest))}"
    return kept, [note] if rest else []


def _same(one: File | bytes | None, other: File | bytes) -> bool:
    return one is not None and same_content(one, other)


def _notes(ranks: Mapping[str, Any], count: int, *, average: bool) -> list[str]:
    found = sorted({rank.r for rank in ranks.values()})
    said = f"rank {found[0]}" if len(found) == 1 else f"ranks from {found[0]} to {found[-1]}" if found else "no LoRA"
    how = AVERAGED if average else f"the sum of {count} adapters, exactly: {said} on {len(ranks)} modules"
    return [how]
