"""Tensors that an adapter stores beside A and B for training alone: a trained model computes without them.

    VeLoRA       lora_velora_embed, lora_velora_initialized: how the inputs are compressed that training keeps for
    its backward pass MonteCLoRA   lora_monteclora_sampler.*: what A's noise is drawn from in training; at inference
    A is as it is stored

Source: peft 0.21.2, tuners/lora/variants.py `VeloraLinearVariant.forward`, `MontecloraLinearVariant.forward`.
"""

from __future__ import annotations

import re

_TRAINING = re.compile(r".+\.lora_(?:velora_(?:embed|initialized)|monteclora_sampler)(?:\..+)?")


def for_training(name: str) -> bool:
    """Whether the tensor of that name in an adapter's file plays no part once the model is trained."""
    return bool(_TRAINING.fullmatch(name))
