"""Uni-LoRA: A and B whose numbers lie in one vector that all modules share, each times a scale.

    unilora_indices_A (r, in), unilora_indices_B (out, r), unilora_scales_A, unilora_scales_B;
    shared: unilora_theta_d (d)

Without save_indices the places follow from a seed, numpy's shuffle, and the order of the class's modules.
Source: peft 0.21.2, tuners/unilora/layer.py `_get_lora_matrices`.
"""

from __future__ import annotations

from ...errors import NotSupported
from ...files.peft import Adapter
from ...lazy.low_rank import LowRank
from ...lazy.tensor import Tensor, made
from .banked import places
from .method import Effect, Method, Target, said


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    rank = target.rank(4)
    return Effect(deltas=(LowRank(_gathered(target, "B", (out, rank)), _gathered(target, "A", (rank, wide)), 1.0),))


def _gathered(target: Target, which: str, shape: tuple[int, int]) -> Tensor:
    vector = target.shared("unilora_theta_d", None)
    where = places(target, f"unilora_indices_{which}", shape, vector.size)
    return made(shape, "gathered", [vector, where, target.part(f"unilora_scales_{which}", *shape)])


def _check_saved(adapter: Adapter) -> None:
    if not adapter.lora:
        where = [f"{adapter.path}/adapter_config.json", f"save_indices = {adapter.config.get('save_indices')!r}"]
        what = (
            "where the numbers of a Uni-LoRA belong is not in the file, and hangs on the order of the class's modules"
        )
        tip = "load it with PEFT, set save_indices=True in its config, and save it again"
        raise NotSupported(what, where=where, help=tip)


METHOD = Method(
    "UNILORA",
    "Uni-LoRA",
    "A and B from places of one vector; refused where these were not saved (`save_indices`)",
    effect,
    axes={
        "unilora_indices_A": ("r", "in"),
        "unilora_indices_B": ("out", "r"),
        "unilora_theta_d": ("theta_d_length",),
    },
    options=said("r proj_seed theta_d_length unilora_dropout bias init_theta_d_bound init_weights save_indices"),
    partly=lambda part: part == "unilora_theta_d",
    check=_check_saved,
)
