"""VB-LoRA: A and B of which each run of numbers is a mixture of a few vectors of a bank that all modules share.

    vblora_logits_A (r, in / v, n), vblora_logits_B (out / v, r, n); shared: vblora_vector_bank (n, v)
    the rows of the topk largest logits, by their softmax; or, with save_only_topk_weights, `…_topk_indices` (…, k) and
    `…_topk_weights` (…, k - 1), of which the last one is what is left of 1

Source: peft 0.21.2, tuners/vblora/layer.py `_get_lora_matrices`, utils/save_and_load.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...files.peft import Adapter
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Shape, Tensor, made, permute, reshape
from .banked import places
from .method import Effect, Method, Target, said

ROWS: Mapping[str, tuple[str | None, ...]] = {"A": ("r", None), "B": (None, "r")}


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    count, length = target.shared("vblora_vector_bank", None, None).shape
    rank, few = target.rank(4), int(target.number("topk", 2))
    if out % length or wide % length or not 0 < few <= count:
        raise target.wrong(f"{few} of {count} vectors of {length} numbers do not fit a weight {target.weight.shape}")
    a = _mixed(target, "A", (rank, wide // length), few)
    b = permute(_mixed(target, "B", (out // length, rank), few), (0, 2, 1))
    return Effect(deltas=(LowRank(reshape(b, (out, rank)), reshape(a, (rank, wide)), 1.0),))


def _mixed(target: Target, which: str, shape: tuple[int, int], few: int) -> Tensor:
    """(*shape, v): the mixtures of a factor."""
    bank, name = target.shared("vblora_vector_bank"), f"vblora_logits_{which}"
    count, length = bank.shape
    saved = f"{name}_topk_indices"
    if bool(target.adapter.config.get("save_only_topk_weights")) != (saved in target.parts):
        raise target.wrong(
            f"save_only_topk_weights = {target.adapter.config.get('save_only_topk_weights')!r}, and the module has "
            f"{saved if saved in target.parts else name}",
            "restore adapter_config.json from the training",
        )
    if saved not in target.parts:
        return made((*shape, length), "mixed", [target.part(name, *shape, count), bank], few=float(few))
    chosen = places(target, saved, (*shape, few), count, once=True)
    weights = target.part(f"{name}_topk_weights", *shape, few - 1)
    return made((*shape, length), "mixed few", [chosen, weights, bank])


def span(adapter: Adapter, module: str) -> Shape | None:
    """As many runs of the bank's length as are mixed."""
    parts, bank = adapter.lora[module], adapter.shared.get("vblora_vector_bank")
    names = [next((n for n in parts if n.startswith(f"vblora_logits_{which}")), "") for which in "BA"]
    if bank is None or len(bank.shape) != 2 or not all(names) or any(len(parts[n].shape) != 3 for n in names):
        return None
    return parts[names[0]].shape[0] * bank.shape[1], parts[names[1]].shape[1] * bank.shape[1]


METHOD = Method(
    "VBLORA",
    "VB-LoRA",
    "A and B mixed from a bank of vectors, by logits or by the weights that were saved of them",
    effect,
    axes={
        **{f"vblora_logits_{which}": (*axes, "num_vectors") for which, axes in ROWS.items()},
        **{f"vblora_logits_{which}_topk_indices": (*axes, "topk") for which, axes in ROWS.items()},
        "vblora_vector_bank": ("num_vectors", "vector_length"),
    },
    span=span,
    options=said(
        "r num_vectors vector_length topk save_only_topk_weights vblora_dropout init_vector_bank_bound init_logits_std"
        " bias"
    ),
    partly=lambda part: part == "vblora_vector_bank",
)
