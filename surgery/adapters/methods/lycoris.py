"""The kinds of LyCORIS, which one file may mix, module by module: told by the parts that a module has.

    lora_A.weight, lora_B.weight       W + s B @ A                                      LoCon; s = alpha / r
    hada_w1_a, …                       W + s (w1_a @ w1_b) * (w2_a @ w2_b)              LoHa
    lokr_w1, …                         W + s kron(w1, w2); s = 1 where both are whole   LoKr
    diff, diff_b; w_norm, b_norm       W + diff, b + diff_b                             full, norms
    ia3_out, ia3_in                    W * (1 + w), of outputs or inputs; b as it is    (IA)³
    a1.weight, …                       W + s (b1 @ b2 + W @ a1 @ a2)                    GLoRA
    oft_blocks (n, k, k), rescale      rows turned: rescale * R_j^T W_j                 diag-OFT
    oft_blocks (m, n, k, k), rescale   the same, by butterflies                         BOFT

A magnitude scales the rows, or the columns, of what the first three make: DoRA.
Source: lycoris-lora 4.1.3, lycoris/modules; what counts is the live network, since its own merge of LoHa and of LoKr
applies alpha / r twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ...errors import series
from ...files.adapters.alphas import BIAS, IA3_IN, IA3_OUT, LYCORIS, MAGNITUDE, A, B
from ...lazy.change import Delta
from ...lazy.dense import Dense
from ...lazy.dtypes import F32
from ...lazy.gain import Gain
from ...lazy.hadamard import Hadamard
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Norms, Sum, add, made, permute, product, reshape
from ...lazy.turned import Turned
from .lokr import both_whole, krons
from .method import Effect, Method, Target

COLUMNS = "dora_scale"  # a magnitude of columns: that of rows is PEFT's
_BIASES = ("diff_b", "b_norm")


def effect(target: Target) -> Effect:
    """What it does to the module. Raises AdapterError for parts of two kinds."""
    there = {_KINDS[part] for part in target.parts if part in _KINDS}
    if len(there) > 1:
        tip = "two tools wrote into one file: keep the tensors of one of them"
        raise target.wrong(f"the module has parts of two kinds: {series(sorted(target.parts))}", tip)
    kind = next(iter(there), None)
    found = _scaled(target, kind(target) if kind else Effect())
    adds = kind in (*_ADDING, None) and not found.gain
    return replace(found, bias=(*found.bias, *_on_bias(target)), several="sum" if adds else "one")


def _lora(target: Target) -> Effect:
    out, wide = target.matrix.shape
    a, b = target.part(A), target.part(B)
    rank = a.shape[0]
    if (b.size, a.size) != (out * rank, rank * wide) or b.shape[:2] != (out, rank):
        raise target.wrong(f"lora_down is {a.shape}, lora_up {b.shape}")
    return Effect(deltas=(LowRank(reshape(b, (out, rank)), reshape(a, (rank, wide)), _scale(target, rank)),))


def _loha(target: Target) -> Effect:
    rank = target.part("hada_w1_b").shape[0]
    return Effect(deltas=(Hadamard(tuple(_factor(target, n, rank) for n in ("1", "2")), None, _scale(target, rank)),))


def _factor(target: Target, which: str, rank: int) -> LowRank:
    """One of LoHa's two low ranks; a convolution's second factor has the kernel's axes, or lacks them."""
    out, wide = target.matrix.shape
    a, b = target.part(f"hada_w{which}_a", None, None), target.part(f"hada_w{which}_b")
    if f"hada_t{which}" in target.parts:
        core = target.part(f"hada_t{which}", rank, rank, *target.weight.shape[2:])
        if a.shape != (rank, out) or b.shape != (rank, target.weight.shape[1]):
            raise target.wrong(f"hada_w{which}_a is {a.shape}, hada_w{which}_b {b.shape}")
        return LowRank(permute(a, (1, 0)), made((rank, wide), "tucker", [core, b]), 1.0)
    if a.shape != (out, rank) or b.size != rank * wide:
        raise target.wrong(f"hada_w{which}_a is {a.shape}, hada_w{which}_b {b.shape}")
    return LowRank(a, reshape(b, (rank, wide)), 1.0)


def _lokr(target: Target) -> Effect:
    for part, axis in (("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in target.parts and not both_whole(target):
            scale = _scale(target, target.parts[part].shape[axis])
            return Effect(deltas=krons(target, None, scale, as_lycoris=True))
    return Effect(deltas=krons(target, None, 1.0, as_lycoris=True))


def _whole(target: Target) -> Effect:
    part = next(one for one in ("diff", "w_norm") if one in target.parts)
    if target.part(part).shape != target.weight.shape:
        raise target.wrong(f"{part} is {target.parts[part].shape}")
    return Effect(deltas=(Dense(reshape(target.parts[part], target.matrix.shape), 1.0),))


def _ia3(target: Target) -> Effect:
    """1 + w for each row, or for each column; an input of a convolution has as many columns as its kernel."""
    inputs = IA3_IN in target.parts
    numbers = target.part(IA3_IN if inputs else IA3_OUT)
    count = target.weight.shape[1 if inputs else 0]
    if numbers.size != count:
        raise target.wrong(f"{numbers.size} numbers for {count} {'inputs' if inputs else 'outputs'}")
    each = math.prod(target.weight.shape[2:]) if inputs else 1
    row = reshape(numbers, (1, count))
    gain = made((1, count * each), "spread", [row], times=1.0, plus=1.0, copies=float(each))
    return Effect(gain=Gain(reshape(gain, (count * each,)), None, columns=inputs))


def _glora(target: Target) -> Effect:
    if target.is_conv and math.prod(target.weight.shape[2:]) > 1:
        raise target.unsupported("GLoRA on a kernel above 1 x 1 is not supported", "merge it with LyCORIS")
    out, wide = target.matrix.shape
    a1, a2, b1, b2 = (target.part(f"{one}.weight") for one in ("a1", "a2", "b1", "b2"))
    rank = a2.shape[0]
    if (a1.size, a2.size, b1.size, b2.size) != (wide * rank, rank * wide, out * rank, rank * wide):
        raise target.wrong(f"a1 is {a1.shape}, a2 {a2.shape}, b1 {b1.shape}, b2 {b2.shape}")
    scale = _scale(target, rank)
    through = product(target.matrix, reshape(a1, (wide, rank)))
    return Effect(
        deltas=(
            LowRank(reshape(b1, (out, rank)), reshape(b2, (rank, wide)), scale),
            LowRank(through, reshape(a2, (rank, wide)), scale),
        )
    )


def _turned(target: Target) -> Effect:
    """Rows turned, as the columns of the transpose, and times `rescale`. An alpha is the longest that Q may be, over
    the number of outputs.
    """
    blocks, out = target.part("oft_blocks"), target.weight.shape[0]
    levels = blocks.shape[0] if len(blocks.shape) == 4 else 1
    count, edge = blocks.shape[-3:-1]
    wide = edge << (levels - 1)
    if blocks.shape[-1] != edge or count * edge != out or out % wide or (levels > 1 and edge % 2):
        raise target.wrong(f"oft_blocks is {blocks.shape}, which does not turn {out} outputs")
    rule, limit = ("butterflies on rows", "on rows")[len(blocks.shape) == 3], target.number("alpha", 0.0) * out
    upright = permute(target.matrix, (1, 0))
    turns = Turned(upright, made((1, out // wide, wide, wide), rule, [blocks], limit=limit), 1.0)
    turns.check(upright.shape)
    gain = Gain(reshape(target.part("rescale"), (out,)), None) if "rescale" in target.parts else None
    return Effect(matrix=permute(add(upright, [turns], F32), (1, 0)), gain=gain)


def _scaled(target: Target, found: Effect) -> Effect:
    """The effect with DoRA's lengths of rows or columns, where the module has any."""
    part = next((one for one in (MAGNITUDE, COLUMNS) if one in target.parts), "")
    if not part:
        return found
    if not found.deltas or found.gain:
        raise target.wrong("a dora_scale is of a module that has nothing to scale", "save the file again")
    columns = part == COLUMNS
    if columns and math.prod(target.weight.shape[2:]) > 1:
        what = "DoRA on the inputs of a kernel above 1 x 1 is not supported"
        raise target.unsupported(what, "merge it with LyCORIS, or train it with wd_on_output")
    size = target.matrix.shape[1 if columns else 0]
    if target.part(part).size != size:
        raise target.wrong(f"dora_scale is {target.parts[part].shape}")
    norms = Norms(Sum(F32, target.matrix, found.deltas), columns)
    return replace(found, gain=Gain(reshape(target.parts[part], (size,)), norms, columns))


def _on_bias(target: Target) -> tuple[Delta, ...]:
    found = [Dense(target.part(part), 1.0) for part in _BIASES if part in target.parts]
    if BIAS in target.parts:
        found.append(Dense(target.part(BIAS), _scale(target, target.part(A).shape[0])))
    return tuple(found)


def _scale(target: Target, rank: int) -> float:
    """alpha / rank: rsLoRA is in the alphas of the files."""
    return target.number("alpha", float(rank)) / rank


_KINDS: dict[str, Callable[[Target], Effect]] = {
    **dict.fromkeys((A, B), _lora),
    **dict.fromkeys(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _loha),
    **dict.fromkeys(("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"), _lokr),
    **dict.fromkeys(("diff", "w_norm"), _whole),
    **dict.fromkeys((IA3_IN, IA3_OUT), _ia3),
    **dict.fromkeys(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), _glora),
    "oft_blocks": _turned,
}
_ADDING = (_lora, _loha, _lokr, _whole)  # what does not depend on the base


METHOD = Method(
    LYCORIS,
    "LyCORIS",
    "LoCon, LoHa, LoKr, (IA)³, full differences, norms, GLoRA, diag-OFT, BOFT, and DoRA, module by module",
    effect,
    options=frozenset({"r", "alpha", "rank_pattern", "alpha_pattern"}),
    conv1d=False,
    layers="nn.Linear, norms, convolutions",
    partly=lambda part: part.startswith(("lokr_", "oft_")),
)
