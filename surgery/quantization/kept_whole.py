"""Surgeries that change names, and what is quantised: codes and companions go together, and config.json's lists of
modules name the same ones afterwards.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import FormatError, NotSupported, PlanError, SurgeryError, listed
from ..names import natural
from .declared import replaced
from .quantised import NOTHING, Quantisation, quantised
from .scheme import module_of
from .skip_lists import skipping

LISTS = ("llm_int8_skip_modules", "modules_to_not_convert", "ignored_layers", "ignore", "exclude_modules")
TOGETHER = "codes and what belongs to them go together: match the whole module, such as {0}"


def held_in(checkpoint: Checkpoint) -> Quantisation:
    """What is quantised in it; nothing where that cannot be read, or contradicts itself already."""
    with suppress(SurgeryError):
        return quantised(checkpoint)
    return NOTHING


def check_dropped(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Raise PlanError where codes would be left without what they need, or the reverse."""
    gone = set(names)
    rows = []
    for name, one in held_in(checkpoint).weights.items():
        parts = [part for part in (*one.parts, *one.left) if part in checkpoint.tensors]
        if (left := [part for part in parts if part not in gone]) and len(left) < len(parts):
            rows.append((name, left[0]))
    if rows:
        raise PlanError(
            f"of {len(rows)} quantised weights a part would go, and a part would stay",
            where=[checkpoint.path, *listed([f"{name}: {left} would stay" for name, left in rows])],
            help=TOGETHER.format(f"--pattern '{re.escape(module_of(rows[0][0]))}\\..*'"),
        )


def renamed_whole(
    before: Checkpoint, after: Checkpoint, new: Mapping[str, str], rule: Callable[[str], str]
) -> Checkpoint:
    """`after`, in which the tensors of `before` have `new` names, with config.json's lists of modules that are not
    quantised renamed as well, by the `rule` for a name.

    Raises PlanError where codes and companions would not fit each other, or a list could not say what it said.
    """
    held = held_in(before)
    if not held.weights:
        return after
    moved = [name for name, one in held.weights.items() if any(new[p] != p for p in one.parts if p in new)]
    try:
        now = quantised(after) if moved else held
    except (FormatError, NotSupported) as error:
        raise PlanError(error.what, where=error.where, help=_whole(moved)) from error
    if len(now.weights) != len(held.weights):
        lost = f"{len(held.weights)} weights are quantised, and {len(now.weights)} would be after renaming"
        raise PlanError(lost, where=[before.path, *listed(sorted(moved, key=natural))], help=_whole(moved))
    lists = {key: [str(one) for one in value] for key in LISTS if isinstance(value := held.said.get(key), list)}
    changed = {key: [rule(f"{one}.weight").removesuffix(".weight") for one in value] for key, value in lists.items()}
    _check_lists(before, new, lists, changed)
    said: dict[str, Any] = {**held.said, **changed}
    if said == dict(held.said) or not held.at:
        return after
    return after.with_config(replaced(after.config, held.at, said))


def _whole(moved: Collection[str]) -> str:
    return TOGETHER.format(f"'{re.escape(module_of(next(iter(moved))))}\\.'") if moved else ""


def _check_lists(
    before: Checkpoint, new: Mapping[str, str], old: Mapping[str, list[str]], now: Mapping[str, list[str]]
) -> None:
    """Raise PlanError for modules that the lists would name otherwise under their new names."""
    modules = {module_of(o): module_of(n) for o, n in new.items() if o.endswith(".weight") and n.endswith(".weight")}
    wrong = list[str]()
    for key in old:
        was, would = skipping(_plain(old[key])), skipping(_plain(now[key]))
        wrong += [f"{m} -> {called}: {key}" for m, called in modules.items() if m != called and was(m) != would(called)]
    if wrong:
        raise PlanError(
            f"config.json would say of {len(wrong)} renamed modules that they are quantised, and they are not, or the"
            " reverse",
            where=[before.path, *listed(wrong)],
            help="name them one by one in quantization_config first, or dequantise: surgery dequantize MODEL -o OUT",
        )


def _plain(entries: list[str]) -> tuple[str, ...]:
    return tuple(entry.removeprefix("re:") for entry in entries)
