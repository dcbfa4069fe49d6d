"""Weights of the base that an adapter's own file brings along: a state dict that was saved whole, as under FSDP or
DeepSpeed.

PEFT loads them over the base's, so they take their place here, too; what was not trained is then the same, or
another base's.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...checkpoint import Checkpoint
from ...errors import AdapterError, listed
from ...files.peft import TOKENS, Adapter
from ...lazy.dtypes import Kind
from .changes import module_of
from .vocabulary import is_vocabulary


def brought_along(adapter: Adapter) -> list[str]:
    """Names of tensors that the file holds whole, and that its config does not say were trained.

    PEFT saves embeddings of its own accord: they count only where others do.
    """
    beside = {name for source in adapter.inputs if source.path in adapter.beside for name in source.tensors}
    saved, biases = adapter.config.get("modules_to_save") or [], adapter.config.get("bias") or "none"
    found = [
        name
        for name in adapter.whole
        if adapter.names[name] not in beside
        and not TOKENS.fullmatch(name)
        and not is_saved(module_of(name), saved)
        and not (biases != "none" and name.endswith("bias"))
    ]
    return [] if all(map(is_vocabulary, found)) else found


def notes_along(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> list[str]:
    """Notes on adapters that bring weights of the base along. Raises AdapterError for such that are no floats, where
    the base's are.
    """
    notes = []
    for one in adapters:
        if found := brought_along(one):
            _check_floats(checkpoint, one, found)
            notes.append(
                f"the file of {one.path} holds {len(found)} weights of the base, such as {found[0]}: they take the"
                " place of those here, as PEFT loads them"
            )
    return notes


def is_saved(module: str, saved: Sequence[str]) -> bool:
    """Whether PEFT saves the module, or one around it, of its own: by how its name ends, within a part of it, too."""
    parts = module.split(".")
    return any(".".join(parts[: i + 1]).endswith(tuple(saved)) for i in range(len(parts)))


def _check_floats(checkpoint: Checkpoint, adapter: Adapter, names: Sequence[str]) -> None:
    bases = {name: checkpoint.tensors[name].dtype for name in names if name in checkpoint.tensors}
    if wrong := [
        name
        for name, dtype in bases.items()
        if dtype.kind is Kind.FLOAT and adapter.whole[name].dtype.kind is not Kind.FLOAT
    ]:
        rows = [f"{adapter.names[name]}: {adapter.whole[name].dtype}, the base's is {bases[name]}" for name in wrong]
        raise AdapterError(
            "the adapter's file holds weights of the base that are quantised, and these are not",
            where=[adapter.path, *listed(rows)],
            help=(
                "save the adapter with PEFT's save_pretrained, which leaves the base's weights out; or leave them out"
                " with --except"
            ),
        )
