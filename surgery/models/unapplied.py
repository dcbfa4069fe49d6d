"""Modules whose weight their class reads past the module: LoRA that wraps them is never called, and a live model
computes without.

    mamba, falcon_mamba, jamba    time_step = self.dt_proj.weight @ time_step
    wavlm                         F.multi_head_attention_forward(…, self.out_proj.weight, …, q_proj_weight=…)

    the types of CONVOLVED        causal_conv1d_fn(…, self.conv1d.weight.squeeze(1), …)

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
# transformers 4 called the convolution where no kernel for it was installed: what was trained there and so is lost.
CONVOLVED = frozenset(
    """
    bailing_hybrid bamba falcon_h1 falcon_mamba glm5_next glm5_next_text granitemoehybrid inkling_mm_model inkling_text
    inkling2 inkling2_text jamba kimi_linear mamba mamba2 nemotron_h olmo_hybrid qwen3_5 qwen3_5_text qwen3_5_moe
    qwen3_5_moe_text qwen3_next zamba zamba2
    """.split()
)


def is_unapplied(config: Mapping[str, Any], module: str) -> bool:
    """Whether an adapter on the module does nothing in a model of that config."""
    text = config.get("text_config")
    kinds = {str(one.get("model_type")) for one in (config, text) if isinstance(one, Mapping)}
    leaves = [leaf for kind in kinds for leaf in UNAPPLIED.get(kind, ())] + ["conv1d"] * bool(kinds & CONVOLVED)
    return is_called(module, leaves)
