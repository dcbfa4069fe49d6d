"""The error for adapter modules that have no place in the base: which, what is near, and the rule that would mend
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ...checkpoint import Checkpoint
from ...errors import NotPlaced, NotSupported, SurgeryError, listed, nearest, series
from ...files.adapter_weights import is_weights
from ...files.beside_adapter import is_model
from ...files.peft import TOKENS, Adapter, base_name
from ...files.refs import has_scheme
from ...models.heads import classes_with, heads_of
from ..rename import Rule
from ..split import fused_in, split_in
from .across import how_to_say
from .additions import why_not
from .mending import rules_for, without_parts
from .own_lora import is_live
from .unspelled import not_spelled


def not_placed(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str]) -> NotPlaced:
    """The error for adapter modules without a place: which, what is near, and the rule that would mend it."""
    if adapter.dialect:
        return not_spelled(checkpoint, adapter, lost)
    bases = {n.rpartition(".")[0] for n in checkpoint.tensors} | _across(checkpoint)
    modules = {key: key for key in adapter.lora} | {key: key.rpartition(".")[0] for key in adapter.whole}
    near = nearest(modules[lost[0]], bases)
    rules = rules_for(checkpoint, modules, lost, bases)
    rows = [_row(adapter, key) for key in lost]
    new = (
        [key for key in lost if key in adapter.whole and not TOKENS.fullmatch(key)] if len(lost) < len(modules) else []
    )
    tips = [
        _by_rule(rules),
        f"the nearest names are {', '.join(near)}" if near else "",
    ]
    gone = [modules[key] for key in lost]
    headless = _head_less(checkpoint, gone) if not rules else []
    tips += headless or ([why_not(checkpoint, new)] if new else [])
    if not (rules or headless or new) and len(lost) < len(modules):
        tips.append(without_parts(checkpoint, gone, set(modules.values()) - set(gone)))
    if said := how_to_say(checkpoint, gone):
        tips.append(said)
    if normed := [module for module in gone if _is_normed(checkpoint, module)]:
        pattern = "|".join(re.escape(module) for module in dict.fromkeys(normed))
        tips.append(
            f"the weight of {series(listed(list(dict.fromkeys(normed)), 3))} is stored as two tensors, its lengths and"
            f" its directions (weight norm), to which nothing can be added: --except '{pattern}' leaves it out"
        )
    if is_live(checkpoint):
        tips.append(
            "the base is the state dict of a live PEFT model: fold its own adapter in first, by surgery merge BASE"
            " -o OUT"
        )
    if not checkpoint.config.get("model_type"):
        said = "has no config.json" if "config.json" not in checkpoint.files else "has no model_type in its config.json"
        tips.append(
            f"the base {said}, without which neither fused modules nor older names are known: put the model's own"
            " beside it"
        )
    return NotPlaced(
        f"{len({modules[key] for key in lost})} of the adapter's {len(set(modules.values()))} modules have no place in"
        " the base",
        where=[adapter.path, *listed(rows)],
        help="; ".join(t for t in tips if t)
        or ("the adapter belongs to another architecture" if len(lost) == len(modules) else None),
    )


def _is_normed(checkpoint: Checkpoint, module: str) -> bool:
    """Whether the module's weight is under weight norm."""
    names = (f"{module}.weight_v", f"{module}.parametrizations.weight.original1")
    return any(name in checkpoint.tensors for name in names)


def _by_rule(rules: Sequence[Rule]) -> str:
    """How the rules are given; where there are several, that nobody can tell which is meant."""
    if not rules:
        return ""
    said = series(listed([f"--map '{old}={new}'" for old, new in rules], 3), " or ")
    return f"{said} would place them" + (": which one is meant, names do not tell" if len(rules) > 1 else "")


def check_read(checkpoint: Checkpoint, adapters: Sequence[Adapter]) -> None:
    """Raise NotSupported for weights beside an adapter that were not read, and that nobody said to leave.

    Those of a model are none where the adapter lies in the folder of the base that is given.
    """
    here = [
        (one, name)
        for one in adapters
        for name in one.unread
        if not (is_model(name) and _same(one.path, checkpoint.path))
    ]
    unread = [f"{one.path}/{name}" for one, name in here]
    if not unread:
        return
    if models := [one for one, name in here if is_model(name)]:
        tip = (
            f"if it is the base that the adapter was trained on, give it as BASE: surgery merge {models[0].path}"
            f" {models[0].path} -o OUT"
        )
        tip += "; --with none leaves it out, in Python open_adapter(…, beside=[])"
        raise NotSupported(
            "a model lies beside the adapter, and another base was given", where=listed(unread), help=tip
        )
    ours = [name for name in unread if is_weights(name)]
    tips = [
        f"--with {ours[0]} merges it along" if ours else "save it as safetensors, and merge it along by --with FILE"
    ]
    tips += ["--with none leaves it out, where it is no part of the training"]
    raise NotSupported(
        "weights lie beside the adapter that a merge would pass over", where=listed(unread), help="; ".join(tips)
    )


def _same(one: str, other: str) -> bool:
    """Whether two paths are of one folder."""
    return one == other or (
        not (has_scheme(one) or has_scheme(other)) and os.path.realpath(one) == os.path.realpath(other)
    )


def _head_less(checkpoint: Checkpoint, lost: Sequence[str]) -> list[str]:
    """What to do where only heads have no place, which classes of the base's type have, and its files have not."""
    heads = {name for head in heads_of(checkpoint.config).values() for name in head}
    names = {f"{module}.weight" for module in lost}
    if not names <= heads:
        return []
    first = min(names)
    classes = ", ".join(listed(classes_with(checkpoint.config, first), 3))
    leave = "|".join(sorted({module.replace(".", "\\.") for module in lost}))
    return [
        f"these files are a body without its head, which {classes} has: merge into those, or leave it out with --except"
        f" '{leave}'"
    ]


def _across(checkpoint: Checkpoint) -> set[str]:
    """The modules that could be placed by splitting or fusing; none where the layouts are not known."""
    try:
        return {part for site in fused_in(checkpoint) for part in site.parts} | {
            site.module for site in split_in(checkpoint)
        }
    except SurgeryError:
        return set()


def _row(adapter: Adapter, key: str) -> str:
    """A module or tensor without a place: as the file calls it, and as it was renamed."""
    name = adapter.names.get(key) or adapter.names[f"{key}.{next(iter(adapter.lora[key]))}"]
    before = base_name(name)
    if key not in adapter.whole:
        before = before.rpartition(".lora_")[0] or before.removesuffix(f".{next(iter(adapter.lora[key]))}")
    return key if before == key else f"{before} -> {key}"
