"""Modules whose weight their class reads past the module: LoRA that wraps them is never called, and a live model
computes without.

    mamba, falcon_mamba, jamba    time_step = self.dt_proj.weight @ time_step
    wavlm                         F.multi_head_attention_forward(…, self.out_proj.weight, …, q_proj_weight=…)

PEFT accepts them, trains nothing on them, and stores factors. Each row was read in transformers 5.24.0 and tried:
logits with an adapter on the module are those without. Not so Mamba's x_proj (called at inference), nor Zamba's,
whose own parameters are no modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..names import is_called

UNAPPLIED: Mapping[str, tuple[str, ...]] = {
    "mamba": ("dt_proj",),
    "falcon_mamba": ("dt_proj",),
    "jamba": ("dt_proj",),
    "wavlm": ("q_proj", "k_proj", "v_proj", "out_proj"),
}


def is_unapplied(config: Mapping[str, Any], module: str) -> bool:
    """Whether LoRA on the module does nothing in a model of that config."""
    text = config.get("text_config")
    kinds = {str(one.get("model_type")) for one in (config, text) if isinstance(one, Mapping)}
    return any(is_called(module, UNAPPLIED[kind]) for kind in kinds if kind in UNAPPLIED)
