"""What would give an adapter's modules a place: rules for their names; or what leaves them out, where the base has no
such part.

    vit.layers.0.attention.q_proj, the base's names begin with layers.    ->  --map '^vit\\.='
    encoder.layers.0.…, the base has a text_model and a vision_model      ->  a rule for each: nobody can tell which
    decoder.block.0.…, the base is an encoder                             ->  --except 'decoder\\..*'
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import series
from ...models.names_v5 import in_memory, renames_of
from ..rename import Rule

PARTS = 3  # more missing parts than these are another model's


def rules_for(
    checkpoint: Checkpoint, modules: Mapping[str, str], lost: Sequence[str], bases: Collection[str]
) -> list[Rule]:
    """The rules that each give all lost modules a place in the layer that they name, and leave the others where they
    are: those that keep most of the names. By the names of the files, or else by those that transformers gives them in
    memory.
    """
    return _rules(modules, lost, set(bases)) or _rules(modules, lost, {*bases, *_loaded(checkpoint)})


def without_parts(checkpoint: Checkpoint, lost: Sequence[str], stay: Collection[str]) -> str:
    """What to do where the base has nothing of the parts that modules without a place are in, and none that stays is;
    else empty.
    """
    modules = {name.rpartition(".")[0] for name in checkpoint.tensors}
    if not (parts := _missing_parts(lost, modules | _loaded(checkpoint))):
        return ""
    pattern = leaving_out(parts, lost)
    if any(re.fullmatch(pattern, module) for module in stay):
        return ""
    return f"the base has no {series(parts)}: merge into one that has, or leave that out with --except '{pattern}'"


def leaving_out(parts: Sequence[str], lost: Sequence[str]) -> str:
    """A regular expression that matches the whole names of the lost modules in these parts."""
    return "|".join(re.escape(part) if part in lost else rf"{re.escape(part)}\..*" for part in parts)


def _loaded(checkpoint: Checkpoint) -> set[str]:
    """The base's modules by the names that transformers gives them in memory."""
    renames = renames_of(checkpoint.config)
    return {in_memory(name, renames).rpartition(".")[0] for name in checkpoint.tensors}


def _missing_parts(lost: Sequence[str], bases: Collection[str]) -> list[str]:
    """The parts of a model that the lost modules are in, and the base has nothing of; none where they are too many."""
    there = {".".join(parts[: i + 1]) for parts in (name.split(".") for name in bases) for i in range(len(parts))}
    found = dict.fromkeys(_first_absent(name, there) for name in lost)
    return [part for part in found if part] if len(found) <= PARTS and "" not in found else []


def _first_absent(name: str, there: Collection[str]) -> str:
    """The shortest beginning of the name, in whole parts, that is no beginning of a name that is there."""
    parts = name.split(".")
    starts = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next((start for start in starts if start not in there), "")


def _rules(modules: Mapping[str, str], lost: Sequence[str], bases: set[str]) -> list[Rule]:
    stay = {name for key, name in modules.items() if key not in lost}
    for level in _levels(modules[lost[0]], bases):
        found: dict[frozenset[str], Rule] = {}
        for rule in level:
            new = {name: re.sub(*rule, name) for name in modules.values()}
            moved = frozenset(new[modules[key]] for key in lost)
            kept = all(new[name] == name for name in stay) and all(_same_layer(*pair) for pair in new.items())
            if kept and moved <= bases - stay and any(new[n] != n for n in new):
                found.setdefault(moved, rule)
        if found:
            return list(found.values())
    return []


def _same_layer(old: str, new: str) -> bool:
    """Whether the numbers in the names are the same, as far as both have some: another layer is no other name."""
    ours, theirs = ([part for part in name.split(".") if part.isdecimal()] for name in (old, new))
    few = min(len(ours), len(theirs))
    return not few or ours[-few:] == theirs[-few:]


def _levels(name: str, bases: Collection[str]) -> Iterator[list[Rule]]:
    """The rules that turn `name` into a base name by changing its first parts, those that change fewest first."""
    first, adding = name.partition(".")[0], list[Rule]()
    for base in sorted(b for b in bases if b.endswith(f".{name}")):
        prefix = base.removesuffix(name)
        adding += [("^", prefix), (f"^{re.escape(first)}\\.", f"{prefix}{first}.")]
    yield adding
    parts = name.split(".")
    for i in range(1, len(parts)):
        tail, head = ".".join(parts[i:]), re.escape(".".join(parts[:i]) + ".")
        yield [(f"^{head}", "")] if tail in bases else []
        yield [(f"^{head}", b.removesuffix(tail)) for b in sorted(bases) if b.endswith(f".{tail}") and "." in tail]
