"""RandLoRA: n random low ranks of rank r that all modules share, each with trained numbers for its ranks and inputs.

    randlora_lambda (r, n), randlora_gamma (n, least), n = ceil(least / r), least and most of in and out;
    shared, and again in each module: randlora_A (r, 1, least or more), randlora_B (most or more, n or more, r)
    L (most, n r) = B, its column base * r + rank;
    R (r n, least), its row rank * n + base = lambda[rank, base] * A[rank] * gamma[base]
    alpha / r * L R, or its transpose where in is larger: the ranks are paired as they were trained, in two orders

Bases that were not saved were drawn in bfloat16 and divided by a deviation in low precision: they are not drawn again.
Source: peft 0.21.2, tuners/randlora/layer.py `get_scaled_bases`, `get_delta_weight`.
"""

from __future__ import annotations

from ...evaluation.compare import same
from ...files.peft import Adapter
from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, add, concat, narrow, permute, reshape
from .method import Effect, Method, Target, said

BASES = ("randlora_A", "randlora_B")


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    least, most, rank = min(out, wide), max(out, wide), target.rank(32)
    runs = -(-least // rank) if rank > 0 else 0
    weights = target.part("randlora_lambda", rank, runs), target.part("randlora_gamma", runs, least)
    a, b = target.shared("randlora_A", rank, 1, None), target.shared("randlora_B", None, None, rank)
    if a.shape[2] < least or b.shape[0] < most or b.shape[1] < runs:
        raise target.wrong(f"randlora_A {a.shape} and randlora_B {b.shape} are smaller than the module")
    _check_copies(target)
    scale = target.number("randlora_alpha", 640) / rank
    long = reshape(narrow(narrow(b, 0, 0, most), 1, 0, runs), (most, runs * rank))
    short = _short(narrow(reshape(a, (rank, a.shape[2])), 1, 0, least), *weights)
    if out >= wide:
        return Effect(deltas=(LowRank(long, permute(short, (1, 0)), scale),))
    return Effect(deltas=(LowRank(short, permute(long, (1, 0)), scale),))


def _short(a: Tensor, strength: Tensor, gamma: Tensor) -> Tensor:
    """R transposed, (least, r n)."""
    turned, columns = permute(gamma, (1, 0)), []
    for rank in range(a.shape[0]):
        bases = add(turned, [], F32, Gain(_row(strength, rank), None, columns=True))
        columns.append(add(bases, [], F32, Gain(_row(a, rank), None)))
    return concat(columns, 1)


def _row(matrix: Tensor, which: int) -> Tensor:
    return reshape(narrow(matrix, 0, which, 1), (matrix.shape[1],))


def _check_copies(target: Target) -> None:
    """Raise AdapterError where a module's copy of a shared tensor is another one."""
    for name in BASES:
        if name in target.parts and not same(target.parts[name], target.shared(name)):
            raise target.wrong(f"the module's {name} is not the one that all modules share")


def span(adapter: Adapter, module: str) -> Shape | None:
    """The lesser of the two sides, twice: the greater one is in no part."""
    gamma = adapter.lora[module].get("randlora_gamma")
    return (gamma.shape[1], gamma.shape[1]) if gamma is not None and len(gamma.shape) == 2 else None


METHOD = Method(
    "RANDLORA",
    "RandLoRA",
    "its random bases from the file; refused where these were not saved",
    effect,
    span=span,
    options=said(
        "r projection_prng_key save_projection sparse very_sparse randlora_dropout randlora_alpha bias init_weights"
    ),
    partly=lambda part: part in BASES,
    idle=lambda part: part in BASES,
)
