"""LoRA on torch's nn.MultiheadAttention: on its in_proj_weight, of q, k and v, and along with it on its out_proj.

    module.lora_A, lora_B                        (r, in), (3 * in, r): of the parameter module.in_proj_weight
    module.base_layer.out_proj.lora_A, lora_B    of module.out_proj, which the live model adds twice

PEFT merges both before each forward pass, and out_proj once by hand and once by its own layer: so it was trained,
and so it computes. Source: peft 0.21.2, tuners/lora/layer.py `MultiheadAttention.merge`; a test holds it against the
live model.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import NotSupported
from ..files.peft import Adapter
from .fused import Rank, config_with, ranks_of

TIMES = 2  # that the live model adds the delta of out_proj


def on_attention(adapter: Adapter) -> Adapter:
    """The adapter with LoRA on each nn.MultiheadAttention under its parameter's name, and out_proj's as strong as it
    is live.
    """
    inside = {module: f"{module}.out_proj" for module in adapter.lora if _is_attention(adapter, module)}
    if not inside:
        return adapter
    if adapter.config.get("lora_bias"):
        where = [f"{adapter.path}: {module}" for module in inside]
        raise NotSupported(
            "lora_bias on nn.MultiheadAttention is not supported", where=where, help="PEFT leaves it out of in_proj"
        )
    new = {module: f"{module}.in_proj_weight" if module in inside else module for module in adapter.lora}
    ranks = {new[module]: rank for module, rank in ranks_of(adapter).items()}
    both = {out: ranks[new[module]] for module, out in inside.items()}  # PEFT looks them up under the module's name
    ranks |= {out: Rank(rank.r, TIMES * rank.alpha) for out, rank in both.items()}
    parts = {
        f"{new[key]}.{part}": adapter.names[f"{key}.{part}"] for key, parts in adapter.lora.items() for part in parts
    }
    return replace(
        adapter,
        config=config_with(adapter.config, ranks),
        lora={new[module]: parts for module, parts in adapter.lora.items()},
        names=parts | {name: adapter.names[name] for name in adapter.whole},
        parameters=adapter.parameters | {new[module] for module in inside},
    )


def _is_attention(adapter: Adapter, module: str) -> bool:
    """Whether the module's wrapper holds another one, on its out_proj."""
    out = f"{module}.out_proj"
    return out in adapter.lora and ".base_layer.out_proj." in adapter.names[f"{out}.{next(iter(adapter.lora[out]))}"]
