"""What adapter_config.json says was trained whole, and the adapter's file does not hold: a merge without it would be
another model.

PEFT fails on such an adapter, too: with a KeyError for what it saved, in silence for a head that no modules_to_save
names.
"""

from __future__ import annotations

from ...checkpoint import Checkpoint
from ...errors import AdapterError, listed
from ...files.peft import TOKENS, Adapter
from ...models.tasks import BODY, classes_of
from ...names import is_called
from .additions import is_within
from .changes import module_of

_RESTORE = "restore the adapter's file from the training"


def check_held(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Raise AdapterError for saved modules of the base, or trained tokens, of which the adapter has no tensor."""
    modules = {name.rpartition(".")[0] for name in checkpoint.tensors}
    held = {module_of(key) for key in adapter.whole}
    said = [entry for entry in adapter.config.get("modules_to_save") or [] if isinstance(entry, str)]
    lost = [
        one
        for one in said
        if any(is_within(module, [one]) for module in modules) and not any(is_within(module, [one]) for module in held)
    ]
    rows = [f"modules_to_save names {one}, which the base has" for one in lost]
    tokens = any(TOKENS.fullmatch(key) for key in adapter.whole)
    if adapter.config.get("trainable_token_indices") and not tokens and not adapter.dropped:
        rows.append("trainable_token_indices names tokens")
    if rows:
        what = "the adapter holds no tensor of what adapter_config.json says was trained"
        tip = f"{_RESTORE}; if it was never trained, take the name out of adapter_config.json"
        raise AdapterError(what, where=[adapter.path, *listed(rows)], help=tip)


def check_head(checkpoint: Checkpoint, adapter: Adapter) -> None:
    """Raise AdapterError for an adapter that made a classifier of the base, and has no head of one."""
    task = str(adapter.config.get("task_type") or "").upper()
    chosen = classes_of(checkpoint.config).get(task)
    current = checkpoint.config.get("architectures") or []
    if task == BODY or not chosen or not chosen.head or chosen.name in current:
        return
    tails = {key.rpartition(".")[0].rpartition(".")[2] for key in chosen.head}
    if not any(is_called(module_of(key), tails) for key in adapter.whole):
        raise AdapterError(
            f"the adapter was trained in a {chosen.name}, and its file has no head of one",
            where=[
                adapter.path,
                f"task_type = {task}",
                *listed(sorted(chosen.head)),
                f"{checkpoint.path}: config.json says {current}",
            ],
            help=(
                f"{_RESTORE}: a head that was not saved was random; --architecture, in Python architecture=, keeps"
                " another class"
            ),
        )
