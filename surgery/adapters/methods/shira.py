"""SHiRA: numbers at places of the weight.

    shira_weight (n), shira_indices (2, n): rows and columns, int32; from Windows the same as float32

Source: peft 0.21.2, tuners/shira/layer.py `get_delta_weight`, tuners/shira/model.py `_get_adapter_state_dict`.
"""

from __future__ import annotations

from ...evaluation.evaluate import load
from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...lazy.dtypes import DTYPES
from ...lazy.tensor import Shape, narrow
from .method import Effect, Method, Target, said
from .places import scattered

INTEGERS = tuple(DTYPES[name] for name in ("I32", "I64", "F32"))


def effect(target: Target) -> Effect:
    """What it does to the module."""
    values, rank = target.part("shira_weight", None), target.said_rank
    if rank and values.size != rank * sum(target.weight.shape):
        what = f"r = {rank} makes {rank * sum(target.weight.shape)} numbers, and shira_weight has {values.size}"
        raise target.wrong(what, MEND)
    tip = "which places were trained is in that tensor alone: take it from the file that PEFT wrote"
    return Effect(deltas=(scattered(target, "shira_indices", (2, values.size), INTEGERS, values, tip),))


def span(adapter: Adapter, module: str) -> Shape | None:
    """As many outputs as there are places of, and what r makes of the rest: it is as many numbers as both together."""
    values, where = (adapter.lora[module].get(name) for name in ("shira_weight", "shira_indices"))
    rank = adapter.config.get("r")
    if values is None or where is None or not rank or where.shape[:1] != (2,) or not where.size:
        return None
    tall = max(1, 1 + int(load(narrow(where, 0, 0, 1)).max()))
    return tall, max(1, values.size // rank - tall)


METHOD = Method(
    "SHIRA",
    "SHiRA",
    "numbers at places of the weight, which the file says",
    effect,
    span=span,
    options=said("r mask_type random_seed init_weights"),
    conv1d=False,
    layers="nn.Linear",
)
