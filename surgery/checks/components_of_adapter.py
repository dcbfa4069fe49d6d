"""What an image model's adapter has on which component: modules, kinds, ranks and alphas, counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ..files.adapters.alphas import IA3_IN, IA3_OUT, LORA, MAGNITUDE, MID, rank_of
from ..files.peft import Adapter
from ..models.diffusion.components import root_of
from ..names import natural

# The kinds, and how the parts of each begin: a module has the first that it has any of.
_KINDS = {
    "LoHa": ("hada_",),
    "LoKr": ("lokr_",),
    "GLoRA": ("a1.", "a2.", "b1.", "b2."),
    "OFT": ("oft_",),
    "(IA)³": (IA3_IN, IA3_OUT),
    "LoRA": tuple(LORA - {MAGNITUDE, MID}),
    "norm": ("w_norm", "b_norm"),
    "difference": ("diff",),
}
_PATTERNS = {"ranks": ("r", "rank_pattern"), "alphas": ("lora_alpha", "alpha_pattern")}


def components(adapter: Adapter) -> dict[str, dict[str, Any]]:
    """By what the names of the modules begin with: how many there are, and of which kinds, ranks and alphas."""
    by_root: dict[str, list[str]] = {}
    for module in sorted(adapter.lora, key=natural):
        by_root.setdefault(root_of(module).rstrip("._") or "no root", []).append(module)
    return {root: _counted(adapter, modules) for root, modules in by_root.items()}


def told(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A line for each component."""
    return [
        f"{root}: {one['modules']} modules; {_series(one['kinds'])}"
        + "".join(f"; {key} {_series(one[key])}" for key in _PATTERNS if one[key])
        for root, one in found.items()
    ]


def _counted(adapter: Adapter, modules: list[str]) -> dict[str, Any]:
    found = {key: _numbers(adapter, modules, key) for key in _PATTERNS}
    return {"modules": len(modules), "kinds": dict(Counter(_kind(adapter.lora[m]) for m in modules)), **found}


def _kind(parts: Mapping[str, object]) -> str:
    kind = next((kind for kind, begins in _KINDS.items() if any(part.startswith(begins) for part in parts)), "unknown")
    return f"{kind} with DoRA" if MAGNITUDE in parts or "dora_scale" in parts else kind


def _numbers(adapter: Adapter, modules: list[str], key: str) -> dict[str, int]:
    """How many modules have which number, of those that have one."""
    usual, table = _PATTERNS[key]
    config, patterns = adapter.config, adapter.config.get(table) or {}
    usual = config.get(usual, config.get("alpha"))
    values = [patterns.get(f"^{re.escape(m)}", usual) for m in modules if rank_of(adapter.lora[m]) is not None]
    return {f"{value:g}": count for value, count in sorted(Counter(values).items())}


def _series(counts: Mapping[str, int]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ×{count}" for value, count in counts.items())
