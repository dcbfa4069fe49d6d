"""Adapters that were trained in transformers, merged into a base in its maker's own layout: there and back again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...checkpoint import Checkpoint
from ...files.peft import Adapter
from ...models.originals import PARAMS, row_of, to_original
from ..originals import from_original, params_in, to_layout


def in_original(
    checkpoint: Checkpoint, adapters: Sequence[Adapter], merged: Callable[[Checkpoint], Checkpoint]
) -> Checkpoint | None:
    """The base with the adapters, in its own layout, where that is a maker's and a module of an adapter is called as
    in transformers; None for all else. Movement alone is around what is `merged`.
    """
    if (params := params_in(checkpoint)) is None:
        return None
    modules = [module for one in adapters for module in one.lora]
    if not any(to_original(f"{module[module.find('model.') :]}.weight") for module in modules if "model." in module):
        return None
    row = row_of(params)
    made = to_layout(merged(from_original(checkpoint, row, params)), row, params)
    mine = {name: checkpoint.files[name] for name in (PARAMS, "config.json") if name in checkpoint.files}
    note = f"the adapter's names are transformers', and the base is in {row.maker}'s own layout: matched by the table"
    return replace(made, files={**made.files, **mine}, metadata=checkpoint.metadata, notes=(*made.notes, note))
