"""SHiRA: numbers at places of the weight.

    shira_weight (n), shira_indices (2, n): rows and columns, int32; from Windows the same as float32

Source: peft 0.21.2, tuners/shira/layer.py `get_delta_weight`, tuners/shira/model.py `_get_adapter_state_dict`.
"""

from __future__ import annotations

from ...lazy.dtypes import DTYPES
from .method import Effect, Method, Target, said
from .places import scattered

INTEGERS = tuple(DTYPES[name] for name in ("I32", "I64", "F32"))


def effect(target: Target) -> Effect:
    """What it does to the module."""
    values = target.part("shira_weight", None)
    tip = "which places were trained is in that tensor alone: take it from the file that PEFT wrote"
    return Effect(deltas=(scattered(target, "shira_indices", (2, values.size), INTEGERS, values, tip),))


METHOD = Method(
    "SHIRA",
    "SHiRA",
    "numbers at places of the weight, which the file says",
    effect,
    options=said("r mask_type random_seed init_weights"),
    conv1d=False,
    layers="nn.Linear",
)
