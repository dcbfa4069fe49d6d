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
from ...models.tasks import all_classes_of, parts_of
from ...names import compiled, is_called
from .along import is_saved
from .changes import module_of

May = Callable[[Adapter, str], bool]


def may_be_new(checkpoint: Checkpoint, pattern: str | None) -> May:
    """Whether a tensor of an adapter may be added under a name that the base has not: where PEFT saved its module
    and the class that config.json names has it (a `score`, a `classifier`, a `bert.pooler`), or where `pattern`
    matches the whole name.
    """
    rule = compiled(pattern) if pattern is not None else None

    def may(adapter: Adapter, name: str) -> bool:
        if rule and rule.fullmatch(name):
            return True
        saved = adapter.config.get("modules_to_save") or []
        return (bool(adapter.beside) or is_saved(module_of(name), saved)) and _has(checkpoint, name)

    return may


def _has(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the class has a tensor of this name in its head, or in a part of its body that other classes leave out;
    of a class that is not known, whether any of its type has such a head, and the base nothing of it.
    """
    config = checkpoint.config
    current = str(next(iter(config.get("architectures") or []), ""))
    kind = all_classes_of(config).get(current)
    if kind is None:
        head = heads_of(config).get(current)
        return (
            name in head if head is not None else bool(classes_with(config, name)) and not _is_there(checkpoint, name)
        )
    front = f"{kind.prefix}." if kind.prefix else ""
    bare = name.removeprefix(front)
    return name in kind.head or (name.startswith(front) and bare.partition(".")[0] in parts_of(config) - kind.lacks)


def _is_there(checkpoint: Checkpoint, name: str) -> bool:
    """Whether the base has the tensor's module, or one within."""
    module = module_of(name)
    modules = {one.rpartition(".")[0] for one in checkpoint.tensors}
    return any(one == module or one.startswith(f"{module}.") for one in modules)


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
