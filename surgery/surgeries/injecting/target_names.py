"""What targets are called: PEFT's own for a model type, as far as the base has them; names of the files, which
`inspect` shows, as those of the class in memory; and the parts that a fused module has.

    blip-2 on OPT   q, v, q_proj, v_proj   ->  q_proj, v_proj
    vit             query, value           ->  q_proj, v_proj
    mpt             (q_proj)                   the parts of Wqkv are Wq, Wk, Wv
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import SurgeryError, listed, series
from ...models.default_targets import default_targets
from ...models.names_v5 import in_memory, renames_of
from ...names import is_called, natural
from ..split import fused_in
from .modules import Module, told

Targets = str | Sequence[str]


def defaults_here(base: Checkpoint) -> Targets:
    """PEFT's targets for the base's type, without those that no module of the base is called: it passes over them. All
    of them where none is.
    """
    targets = default_targets(base.config.get("model_type"))
    if isinstance(targets, str) or len(targets) < 2:
        return targets
    modules = told(base)
    return [one for one in targets if aims_at(modules, [one])] or targets


def as_in_memory(base: Checkpoint, targets: Targets, modules: Mapping[str, Module]) -> tuple[Targets, list[str]]:
    """The targets by the class's names, where no module has one and the files do; and notes that say so.

    One whose modules the class's last names do not tell from others stays as it is.
    """
    if isinstance(targets, str):
        return targets, []
    renames = renames_of(base.config)
    files = {name.removesuffix(".weight"): in_memory(name, renames).removesuffix(".weight") for name in base.tensors}
    new, notes = list[str](), list[str]()
    for target in targets:
        found = {files[name] for name in files if is_called(name, [target]) and files[name] in modules}
        leaves = sorted({name.rpartition(".")[2] for name in found}, key=natural)
        known = any(is_called(name, [target]) for name in modules)
        if known or not found or found != {name for name in modules if is_called(name, leaves)}:
            new.append(target)
            continue
        new += leaves
        notes.append(f"{target}, as the files call it, is {series(leaves)} in the class, as PEFT meets it")
    return list(dict.fromkeys(new)), notes


def aims_at(modules: Mapping[str, Module], targets: Targets) -> bool:
    """Whether a module has the last names of a target."""
    return not isinstance(targets, str) and any(is_called(name, targets) for name in modules)


def parts_here(base: Checkpoint) -> str:
    """A message's words for what the parts of the base's fused modules are called; empty where it has none."""
    try:
        sites = fused_in(base)
    except SurgeryError:
        return ""
    leaves = dict.fromkeys(part.rpartition(".")[2] for site in sites for part in site.parts)
    return f"; parts of fused modules are called {series(listed(list(leaves), 12))}" if leaves else ""
