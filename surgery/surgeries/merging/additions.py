"""Which tensors that an adapter holds whole may be new: those of a head that a class of the model's type has, and
what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import NothingMatched, listed, series
from ...files.peft import Adapter
from ...lazy.tensor import Tensor
from ...models.heads import classes_with, heads_of
from ...names import compiled, is_called

May = Callable[[Adapter, str], bool]


def may_be_new(checkpoint: Checkpoint, pattern: str | None) -> May:
    """Whether a tensor of an adapter may be added under a name that the base has not: where PEFT saved its module
    and a class of the base's model type has it beside its body (a `score`, a `classifier`, `qa_outputs`), or where
    `pattern` matches the whole name.
    """
    rule = compiled(pattern) if pattern is not None else None
    modules = {name.rpartition(".")[0] for name in checkpoint.tensors}

    def may(adapter: Adapter, name: str) -> bool:
        if rule and rule.fullmatch(name):
            return True
        module = name.rpartition(".")[0]
        there = any(one == module or one.startswith(f"{module}.") for one in modules)
        saved = adapter.config.get("modules_to_save") or []
        return (
            not there
            and (bool(adapter.beside) or is_within(module, saved))
            and bool(classes_with(checkpoint.config, name))
        )

    return may


def check_added(pattern: str | None, added: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> None:
    """Raise NothingMatched for a pattern that added nothing."""
    if pattern is None or any(compiled(pattern).fullmatch(name) for name in added):
        return
    whole = sorted({name for one in adapters for name in one.whole})
    held = f"held whole are {', '.join(listed(whole, 3))}" if whole else "the adapters hold no tensor whole"
    raise NothingMatched(
        f"`{pattern}` adds no tensor: no name of one without a place matches it as a whole", help=f"{held}; --add"
    )


def is_within(module: str, saved: Sequence[str]) -> bool:
    """Whether the module is one of those saved, or a part of one."""
    parts = module.split(".")
    return any(is_called(".".join(parts[: i + 1]), saved) for i in range(len(parts)))


def why_not(checkpoint: Checkpoint, names: Sequence[str]) -> str:
    """Why these are not simply added, and how they are."""
    kind, classes = checkpoint.config.get("model_type"), heads_of(checkpoint.config)
    if not kind:
        known = "the base has no config.json that names a model type"
    elif not classes:
        known = f"which heads model type `{kind}` has is not known"
    else:
        known = f"no class of model type `{kind}` has {series(listed(names, 2))} beside its body"
    escaped = names[0].replace(".", "\\.")
    return f"{known}: --add '{escaped}' adds a tensor under its own name"
