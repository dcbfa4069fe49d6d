"""The error for adapter modules that have no place in the base: which, what is near, and the rule that would mend
it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import NotPlaced, NotSupported, SurgeryError, listed, nearest
from ...files.beside_adapter import is_model
from ...files.peft import TOKENS, Adapter, base_name
from ...files.refs import has_scheme
from ...models.heads import classes_with, heads_of
from ..rename import Rule
from ..split import fused_in, split_in
from .across import how_to_say
from .additions import why_not
from .own_lora import is_live


def not_placed(checkpoint: Checkpoint, adapter: Adapter, lost: Sequence[str]) -> NotPlaced:
    """The error for adapter modules without a place: which, what is near, and the rule that would mend it."""
    bases = {n.rpartition(".")[0] for n in checkpoint.tensors} | _across(checkpoint)
    modules = {key: key for key in adapter.lora} | {key: key.rpartition(".")[0] for key in adapter.whole}
    near = nearest(modules[lost[0]], bases)
    rule = _mending(modules, lost, bases)
    rows = [_row(adapter, key) for key in lost]
    new = (
        [key for key in lost if key in adapter.whole and not TOKENS.fullmatch(key)] if len(lost) < len(modules) else []
    )
    tips = [
        f"--map '{rule[0]}={rule[1]}' would place them" if rule else "",
        f"the nearest names are {', '.join(near)}" if near else "",
    ]
    tips += [why_not(checkpoint, new)] if new else []
    tips += _head_less(checkpoint, [modules[key] for key in lost]) if not rule else []
    if said := how_to_say(checkpoint, [modules[key] for key in lost]):
        tips.append(said)
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
    ours = [name for name in unread if name.endswith(".safetensors")]
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
    leave = first.removesuffix(".weight").replace(".", "\\.")
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
    before = before if key in adapter.whole else before.rpartition(".lora_")[0]
    return key if before == key else f"{before} -> {key}"


def _mending(modules: Mapping[str, str], lost: Sequence[str], bases: set[str]) -> Rule | None:
    """A rule that gives the lost modules a place, and leaves the others where they are; None where none is found."""
    stay = {name for key, name in modules.items() if key not in lost}
    for rule in _prefixes(modules[lost[0]], bases):
        new = {name: re.sub(*rule, name) for name in modules.values()}
        moved = {new[modules[key]] for key in lost}
        if moved <= bases - stay and all(new[name] == name for name in stay) and any(new[name] != name for name in new):
            return rule
    return None


def _prefixes(name: str, bases: set[str]) -> Iterator[Rule]:
    """The rules that turn `name` into a base name by changing its first parts."""
    for base in sorted(b for b in bases if b.endswith(f".{name}")):
        prefix, first = base.removesuffix(name), name.partition(".")[0]
        yield "^", prefix
        yield f"^{re.escape(first)}\\.", f"{prefix}{first}."
    parts = name.split(".")
    for i in range(1, len(parts)):
        tail, head = ".".join(parts[i:]), re.escape(".".join(parts[:i]) + ".")
        if tail in bases:
            yield f"^{head}", ""
        for base in sorted(b for b in bases if b.endswith(f".{tail}") and "." in tail):
            yield f"^{head}", base.removesuffix(tail)
