"""How a merge was made, as the manifest of the merged checkpoint tells it: so it is replayed where nobody says how."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import AdapterError, FormatError, listed
from ..files.adapters.opening import open_adapter, open_adapters
from ..files.folder import PathLike
from ..files.history import merged_in
from ..files.peft import Adapter
from ..models.fused.given import as_said, given_as
from ..surgeries.cast import NAMES
from .check import Check
from .proof import Merging

Step = Mapping[str, Any]


def as_merged(merged: Checkpoint, base: Checkpoint, adapters: Sequence[Adapter]) -> tuple[Merging, list[Check]]:
    """How the manifest says that these adapters were merged since the base, and a check that tells, unless it says
    nothing of it.
    """
    since = _since(base, merged)
    steps = [step for step in since if step.get("surgery") == "merge"]
    weights = {str(one.get("digest")): float(one.get("weight", 1)) for one in merged_in(steps)}
    if not steps:
        return Merging(), []
    if unknown := [one.path for one in adapters if one.digest not in weights]:
        others = f"the manifest tells of merges of other adapters than {', '.join(listed(unknown))}"
        return Merging(), [Check("options", None, f"{others}: weights are taken to be 1", tuple(unknown))]
    way, *ways = map(_way, steps)
    if any(other != way for other in ways):
        said = "the manifest tells of merges that were restricted in different ways"
        return Merging(), [Check("options", None, f"{said}: verify each against the one before it")]
    found = replace(
        way,
        weights=[weights[one.digest] for one in adapters],
        dtype=_dtype(since),
        base_as_trained=any(step.get("base_as_trained") for step in steps),
    )
    rows = "; ".join(f"{option} {value}" for option, value in _options(found).items() if value)
    return found, [Check("options", True, f"as the manifest has them: {rows}")] if rows else []


def opened_as(
    merged: Checkpoint, paths: Sequence[PathLike], beside: Sequence[PathLike] | None, said: Mapping[str, Any]
) -> list[Adapter]:
    """The adapters, opened as it was said; where nothing was, each as the manifest says that it was opened and merged,
    if it tells of that one. Raises what `open_adapters` raises.
    """
    if beside is not None or any(value is not None for value in said.values()):
        return open_adapters(paths, beside, **said)
    told = merged_in(merged.history)
    return [_as_told(path, told) or open_adapter(path) for path in paths]


def _as_told(path: PathLike, told: Sequence[Step]) -> Adapter | None:
    """The adapter, where one of these is of the same bytes."""
    for one in told:
        if "key" in one:
            with suppress(AdapterError, FormatError):  # of another format than that one
                found = open_adapter(
                    path, format=one["key"], alpha=one.get("alpha"), enable_lora=one.get("enable_lora")
                )
                if found.digest == one["digest"]:
                    return found
    return None


def _since(base: Checkpoint, merged: Checkpoint) -> Sequence[Step]:
    """What was done to the base; all of the history where it does not begin with the base's."""
    past = len(base.history)
    return merged.history[past if merged.history[:past] == base.history else 0 :]


def _way(step: Step) -> Merging:
    """How a merge was made, but for what may differ from adapter to adapter."""
    given = step.get("given")
    return Merging(
        names=tuple((str(a), str(b)) for a, b in step.get("map", ())),
        only=step.get("only"),
        except_=step.get("except"),
        add=step.get("add"),
        architecture=step.get("architecture"),
        given=given_as(given) if given is not None else None,
        dequantize=step.get("quantised") == "dequantized",
        requantize=step.get("quantised") == "requantized",
        through=step.get("through"),
    )


def _dtype(steps: Sequence[Step]) -> str | None:
    """What the result was cast to while it was merged: what is cast afterwards was rounded before, too."""
    casts = {step.get("dtype") for step in steps if step.get("surgery") == "cast" and "kept" in step}
    return next((name for name, dtype in NAMES.items() if str(dtype) in casts), None)


def _options(merging: Merging) -> dict[str, str | None]:
    """What is out of the ordinary, as it is shown."""
    weights = merging.weights or ()
    return {
        "weights": ", ".join(f"{weight:g}" for weight in weights) if {*weights} != {1} else "",
        "only": merging.only,
        "except": merging.except_,
        "add": merging.add,
        "architecture": merging.architecture,
        "map": ", ".join(f"{pattern}={replacement}" for pattern, replacement in merging.names),
        "dtype": merging.dtype,
        "quantised weights": "in 16 bits" if merging.dequantize else "coded again" if merging.requantize else "",
        "through": merging.through,
        "given": json.dumps(as_said(merging.given)) if merging.given else "",
    }
