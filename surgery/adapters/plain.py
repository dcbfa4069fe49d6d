"""Kinds of adapters that are LoRA, saved modules or trained tokens under another name, as what they are.

    TRAINABLE_TOKENS   token_indices: rows that take the base's place, as with LoRA's trainable_token_indices
    LN_TUNING          norms that take the base's place, as with LoRA's modules_to_save

Source: peft 0.21.2, tuners/trainable_tokens/layer.py, tuners/ln_tuning/layer.py.
"""

from __future__ import annotations

from dataclasses import replace

from ..files.peft import Adapter, module_of
from .adalora import as_lora
from .blocks import without_blocks


def plain(adapter: Adapter) -> Adapter:
    """The adapter as LoRA of whole factors, with what it replaces. `check_kind` comes first. Raises AdapterError,
    NotSupported.
    """
    match adapter.config.get("peft_type"):
        case "TRAINABLE_TOKENS":
            more = {"trainable_token_indices": adapter.config.get("token_indices")}
        case "LN_TUNING":
            more = {"modules_to_save": [*(adapter.config.get("modules_to_save") or []), *_tuned(adapter)]}
        case _:
            return without_blocks(as_lora(adapter))
    return replace(adapter, config={**adapter.config, "peft_type": "LORA", **more})


def _tuned(adapter: Adapter) -> list[str]:
    """The last names of modules that have a trained copy: of one of two tied tensors it is a tensor of its own."""
    keys = [key for key in adapter.whole if ".ln_tuning_layers." in adapter.names[key]]
    return sorted({module_of(key).rpartition(".")[2] for key in keys})
