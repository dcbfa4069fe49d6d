"""Ranks and alphas of the modules in a file of an image model's adapter, as adapter_config.json would have them.

The scale of a module is alpha / rank. Its alpha is a tensor of the file, or said in diffusers' metadata; else it is the
rank. rsLoRA is in the alphas of kohya's files already, and is put into those of diffusers' metadata.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from ...errors import AdapterError, FormatError, listed, series
from ...lazy.tensor import Tensor
from ...patterns.matching import end_matches
from ..adapter_config import check_config
from ..strict import parse_object

LYCORIS = "LYCORIS"  # what such an adapter's kind is called where it is not LoRA alone
A, B, MID, MAGNITUDE, BIAS = "lora_A.weight", "lora_B.weight", "lora_mid.weight", "lora_magnitude_vector", "lora_B.bias"
IA3_IN, IA3_OUT = "ia3_in", "ia3_out"  # the part `weight`, as `on_input` says
LORA = frozenset({A, B, MID, MAGNITUDE, BIAS})
METADATA = "lora_adapter_metadata"
# The tensors that tell a module's rank, and on which axis: the first that is there.
_RANKS = ((A, 0), (B, 1), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0), ("a2.weight", 0))

_Modules = Mapping[str, Mapping[str, Tensor]]
_Number = TypeVar("_Number", int, float)


def config_of(
    path: str, modules: _Modules, alphas: Mapping[str, float], metadata: Mapping[str, str]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What adapter_config.json would say of the modules, and notes on what the file does not. Raises AdapterError,
    FormatError.
    """
    ranks = {module: rank for module, parts in modules.items() if (rank := rank_of(parts)) is not None}
    said = _declared(path, metadata)
    declared = {module: _declared_alpha(path, module, rank, said) for module, rank in ranks.items()}
    _check_same(path, alphas, declared)
    found = {module: alphas.get(module, declared[module]) for module in ranks}
    if wrong := [
        f"{path}: {module}" for module, alpha in found.items() if alpha is not None and not math.isfinite(alpha)
    ]:
        raise AdapterError("the adapter's alpha is not a number", where=listed(wrong), help="the training diverged")
    told = {module: _whole(alpha) if (alpha := found[module]) else rank for module, rank in ranks.items()}
    told |= {module: alphas.get(module, 0.0) for module, parts in modules.items() if "oft_blocks" in parts}
    silent, zero = ([m for m, alpha in found.items() if alpha == missing] for missing in (None, 0))
    return _config(modules, ranks, told), tuple(_notes(silent, zero, len(told)))


def _check_same(path: str, alphas: Mapping[str, float], declared: Mapping[str, float | None]) -> None:
    """Raise AdapterError where a tensor says another alpha than the metadata."""
    wrong = [
        f"{path}: {module}: {alphas[module]:g}, and {alpha:g}"
        for module, alpha in declared.items()
        if alpha is not None and module in alphas and not math.isclose(alpha, alphas[module], rel_tol=1e-2)
    ]
    if wrong:
        what = f"a tensor says another alpha than the file's {METADATA}"
        raise AdapterError(
            what, where=listed(wrong), help="the scale depends on it: take the wrong one out of the file"
        )


def _config(modules: _Modules, ranks: Mapping[str, int], alphas: Mapping[str, float]) -> dict[str, Any]:
    lora = all(parts.keys() <= LORA for parts in modules.values())
    dora = {MAGNITUDE in parts for parts in modules.values()}
    kind = "LORA" if lora and len(dora) == 1 else LYCORIS
    r, alpha = _usual(ranks.values(), 1), _usual(alphas.values(), 1.0)
    return {
        "peft_type": kind,
        "r": r,
        "lora_alpha" if kind == "LORA" else "alpha": alpha,
        "rank_pattern": {f"^{re.escape(module)}": one for module, one in ranks.items() if one != r},
        "alpha_pattern": {f"^{re.escape(module)}": one for module, one in alphas.items() if one != alpha},
        **({"use_dora": True} if kind == "LORA" and dora == {True} else {}),
        **({"lora_bias": True} if kind == "LORA" and any(BIAS in parts for parts in modules.values()) else {}),
    }


def _notes(silent: list[str], zero: list[str], count: int) -> list[str]:
    which = "the file says no alpha" if len(silent) == count else f"{len(silent)} of {count} modules have no alpha"
    notes = [f"{which}: it is the rank, as it is to the tools that write such files, and the scale 1"] if silent else []
    return notes + (
        [f"an alpha of 0 is the rank, as it is to kohya's scripts: {series(listed(zero, 3))}"] if zero else []
    )


def _usual(values: Iterable[_Number], default: _Number) -> _Number:
    return next((value for value, _ in Counter(values).most_common(1)), default)


def _whole(alpha: float) -> float:
    """The number without a point where it needs none."""
    return int(alpha) if alpha == int(alpha) else alpha


def rank_of(parts: Mapping[str, Tensor]) -> int | None:
    """The rank that an alpha is divided by; None where there is none."""
    there = ((parts[name].shape, axis) for name, axis in _RANKS if name in parts)
    return next((shape[axis] for shape, axis in there if len(shape) > axis), None)


def _declared(path: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """diffusers' configs in the file's metadata, by the root of the names that each is about."""
    if METADATA not in metadata:
        return {}
    content = parse_object(metadata[METADATA].encode(), lambda what: FormatError(f"{METADATA}: {what}", where=[path]))
    found: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        root, _, option = key.rpartition(".")
        found.setdefault(root, {})[option] = value
    for config in found.values():
        check_config(config, f"{path}: {METADATA}")
    return found


def _declared_alpha(path: str, module: str, rank: int, said: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The alpha that the metadata has for a module. Raises AdapterError where it says another rank."""
    root = next((root for root in said if module.startswith(f"{root}.") or not root), None)
    if root is None:
        return None
    config, inner = said[root], module.removeprefix(f"{root}.")
    r = _by_pattern(path, config, inner, "r", "rank_pattern")
    alpha = _by_pattern(path, config, inner, "lora_alpha", "alpha_pattern")
    if r is not None and r != rank:
        what = f"the file's {METADATA} says rank {r}, and the factors are of rank {rank}"
        tip = "the scale depends on it: restore the file from the training"
        raise AdapterError(what, where=[f"{path}: {module}"], help=tip)
    return alpha * math.sqrt(rank) if alpha is not None and config.get("use_rslora") else alpha


def _by_pattern(path: str, config: Mapping[str, Any], module: str, key: str, table: str) -> float | None:
    """A number as PEFT looks it up; None where nothing is said. Raises AdapterError for what is none."""
    found = config.get(key)
    patterns = config.get(table) or {}
    found = next((value for rule, value in patterns.items() if end_matches(rule, module)), found)
    if found is not None and (isinstance(found, bool) or not isinstance(found, int | float)):
        where = [f"{path}: {module}", f"{key} = {found!r}"]
        raise AdapterError(f"{METADATA} has no number", where=where, help="restore the file from the training")
    return found
