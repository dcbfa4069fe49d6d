"""Adapters whose initialisation changed the base that they were trained on, as PiSSA's does, and that base."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import tiny_models
import torch
import transformers as tf


def trained(saved: Callable[..., Path], folder: Path, init: Any) -> torch.Tensor:
    """An adapter of this initialisation, trained a step, `folder`/a, and the base that it was trained on,
    `folder`/base; what the live model computes.
    """
    torch.manual_seed(3)
    model = peft.get_peft_model(
        tf.LlamaForCausalLM.from_pretrained(saved("llama")).eval(),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"], init_lora_weights=init),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "a")
    live = tiny_models.output(model.eval(), "llama")
    model.unload().save_pretrained(folder / "base")
    return live
