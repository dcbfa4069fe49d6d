"""GraLoRA: k x k blocks of the weight, each with a low rank of its own, r / k; and an ordinary one for all of it.

    gralora_A (k, in / k, r), gralora_B (k, r, out / k); gralora_A_general.weight (h, in), gralora_B_general.weight
    (out, h) where hybrid_r = h is not 0
    block (j, n), of rows j and columns n, of alpha / (r + h) * delta: (A[n][:, j-th r / k] @ B[j][n-th r / k])^T

As one low rank of k r: the rows of block j have B[j] in the j-th r columns, and zeros elsewhere.
Source: peft 0.21.2, tuners/gralora/layer.py `get_delta_weight`.
"""

from __future__ import annotations

from ...files.peft import Adapter
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, Zeros, concat, narrow, permute, reshape
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    rank, mixed, runs = (
        int(target.number(key, usual)) for key, usual in (("r", 32), ("hybrid_r", 0), ("gralora_k", 2))
    )
    if runs < 1 or rank < 1 or rank % runs or out % runs or wide % runs:
        raise target.wrong(f"r = {rank} and gralora_k = {runs} do not fit a weight {target.weight.shape}")
    scale = target.number("alpha", 64) / (rank + mixed)
    a, b = target.part("gralora_A", runs, wide // runs, rank), target.part("gralora_B", runs, rank, out // runs)
    deltas = [LowRank(_left(b), _right(a, rank // runs), scale)]
    if mixed:
        general = (
            target.part("gralora_B_general.weight", out, mixed),
            target.part("gralora_A_general.weight", mixed, wide),
        )
        deltas.append(LowRank(*general, scale))
    return Effect(deltas=tuple(deltas))


def _left(b: Tensor) -> Tensor:
    """(out, k r): each B[j] transposed on the diagonal."""
    return _diagonal([permute(_one(b, j), (1, 0)) for j in range(b.shape[0])])


def _right(a: Tensor, each: int) -> Tensor:
    """(k r, in): for each run of rows j, the j-th columns of each A[n], transposed, on the diagonal."""
    runs = a.shape[0]
    rows = [[permute(narrow(_one(a, n), 1, j * each, each), (1, 0)) for n in range(runs)] for j in range(runs)]
    return concat([_diagonal(row) for row in rows], 0)


def _one(stack: Tensor, which: int) -> Tensor:
    return reshape(narrow(stack, 0, which, 1), stack.shape[1:])


def _diagonal(blocks: list[Tensor]) -> Tensor:
    """The blocks, all of one shape, on the diagonal, zeros elsewhere."""
    rows = []
    for at, block in enumerate(blocks):
        zeros = Zeros(block.dtype, block.shape)
        rows.append(concat([block if other == at else zeros for other in range(len(blocks))], 1))
    return concat(rows, 0)


def span(adapter: Adapter, module: str) -> Shape | None:
    """As large as the blocks together."""
    a, b = (adapter.lora[module].get(f"gralora_{which}") for which in "AB")
    if a is None or b is None or len(a.shape) != 3 or len(b.shape) != 3:
        return None
    return b.shape[0] * b.shape[2], a.shape[0] * a.shape[1]


METHOD = Method(
    "GRALORA",
    "GraLoRA",
    "a low rank for each block of the weight, and one for all of it (`hybrid_r`)",
    effect,
    span=span,
    options=said("r hybrid_r alpha gralora_k gralora_dropout init_weights bias"),
)
