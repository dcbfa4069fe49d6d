"""LoRA that the live model never applies, left out by name: the merged checkpoint computes what that model does."""

from __future__ import annotations

from dataclasses import replace

from ...checkpoint import Checkpoint
from ...errors import listed
from ...files.peft import Adapter
from ...models.unapplied import is_unapplied


def as_applied(checkpoint: Checkpoint, adapter: Adapter) -> tuple[Adapter, str]:
    """The adapter without LoRA on modules that the base's class reads past, and a note that says so; "" where there
    is none.
    """
    gone = {module for module in adapter.lora if is_unapplied(checkpoint.config, module.removesuffix(".weight"))}
    if not gone:
        return adapter, ""
    dropped = {
        adapter.names[f"{module}.{part}"]: tensor for module in gone for part, tensor in adapter.lora[module].items()
    }
    leaves = ", ".join(sorted({module.removesuffix(".weight").rpartition(".")[2] for module in gone}))
    kind = checkpoint.config.get("model_type")
    older = "; transformers 4 does apply it, where no kernel is installed" if "conv1d" in leaves.split(", ") else ""
    note = (
        f"left out, since {kind} reads the weight of {leaves} directly, so that PEFT's live model never applies an"
        f" adapter on it: {', '.join(listed(sorted(gone), 3))}{older}"
    )
    lora = {module: parts for module, parts in adapter.lora.items() if module not in gone}
    return replace(adapter, lora=lora, dropped={**adapter.dropped, **dropped}), note
