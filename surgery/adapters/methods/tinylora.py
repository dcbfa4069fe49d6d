"""TinyLoRA: a few numbers that groups of modules share, times fixed random matrices between two fixed factors.

    tinylora_A (r, in), tinylora_B (out, r), tinylora_P (u, r, r); shared: tinylora_v.<group> (u)
    W + B (Σ_j v_j P_j) A; of an embedding A (r, dim), B (vocabulary, r)

A module's group follows from its number among the class's modules, which a checkpoint does not tell; but P was drawn
from a seed that is that number more than projection_seed, so each module's P tells it.
Source: peft 0.21.2, tuners/tinylora/layer.py `get_delta_weight`, `_init_projection`, tuners/tinylora/model.py
`_create_and_replace`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...errors import AdapterError, NotSupported, listed, series
from ...evaluation.evaluate import load
from ...evaluation.twister import BLOCK, normal
from ...files.peft import Adapter
from ...lazy.low_rank import LowRank
from ...lazy.tensor import made, narrow, reshape
from ...names import natural
from .method import Effect, Method, Target, said

V = "tinylora_v"
NEAR = 2.0**-6  # of numbers that were rounded to 8 bits


def effect(target: Target) -> Effect:
    """What it does to the module."""
    out, wide = target.weight.shape
    b, v = target.part("tinylora_B", out, None), target.part(V, None)
    a, p = target.part("tinylora_A", b.shape[1], wide), target.part("tinylora_P", v.size, b.shape[1], b.shape[1])
    return Effect(deltas=(LowRank(b, made(a.shape, "combined", [v, p, a]), 1.0),))


def prepared(adapter: Adapter, widest: Callable[[], int]) -> Adapter:
    """The adapter with the numbers of each module's group among its parts. Raises AdapterError, NotSupported."""
    modules = sorted(adapter.lora, key=natural)
    groups = _groups(adapter, len(modules))
    missing = [f"{V}.{group}" for group in range(groups) if f"{V}.{group}" not in adapter.shared]
    if missing or len(_shared(adapter)) != groups:
        raise AdapterError(
            f"weight_tying = {adapter.config.get('weight_tying')!r} makes {groups} groups of {len(modules)} modules,"
            f" and the file has {len(_shared(adapter))}",
            where=[adapter.path, *listed(missing)],
            help="restore adapter_config.json from the training, or take the file that PEFT wrote",
        )
    numbers = dict.fromkeys(modules, 0) if groups == 1 else _numbered(adapter, modules)
    each = max(1, len(modules) // groups)
    of = {module: f"{V}.{min(number // each, groups - 1)}" for module, number in numbers.items()}
    return replace(
        adapter,
        lora={module: {**adapter.lora[module], V: adapter.shared[of[module]]} for module in modules},
        shared={part: tensor for part, tensor in adapter.shared.items() if part not in of.values()},
        names={**adapter.names, **{f"{module}.{V}": adapter.names[part] for module, part in of.items()}},
    )


def _groups(adapter: Adapter, modules: int) -> int:
    tying = adapter.config.get("weight_tying", 0.0)
    if isinstance(tying, bool) or not isinstance(tying, int | float) or not 0 <= tying <= 1:
        where, tip = [f"{adapter.path}/adapter_config.json"], "restore adapter_config.json from the training"
        raise AdapterError(f"weight_tying = {tying!r} is no number from 0 to 1", where=where, help=tip)
    return max(1, round(modules * (1.0 - tying)))


def _shared(adapter: Adapter) -> list[str]:
    return [part for part in adapter.shared if part.startswith(f"{V}.")]


def _numbered(adapter: Adapter, modules: list[str]) -> dict[str, int]:
    """The number of each module in its class, as its P tells. Raises NotSupported where that does not tell."""
    seed = adapter.config.get("projection_seed")
    if not isinstance(seed, int):
        raise _untold(adapter, f"projection_seed = {seed!r}")
    first = [normal(seed + number, 1.0) for number in range(len(modules))]
    found = {module: _number(adapter.lora[module], first) for module in modules}
    if sorted(found.values()) != list(range(len(modules))):
        lost = [module for module, number in found.items() if number < 0 or list(found.values()).count(number) > 1]
        raise _untold(adapter, f"tinylora_P of {series(listed(lost, 3))}")
    return found


def _number(parts: Mapping[str, Any], first: list[Any]) -> int:
    """Which of these P begins with, as a share of its deviation; -1 for none."""
    p = parts.get("tinylora_P")
    if p is None or p.size < BLOCK or BLOCK < p.size < 2 * BLOCK:  # torch draws the last block's numbers again
        return -1
    values = load(narrow(reshape(p, (p.size,)), 0, 0, BLOCK)).double().numpy() * p.shape[1] ** 0.5
    near = [number for number, one in enumerate(first) if abs(values - one).max() < NEAR * abs(one).max()]
    return near[0] if len(near) == 1 else -1


def _untold(adapter: Adapter, by: str) -> NotSupported:
    return NotSupported(
        "which of the trained vectors a TinyLoRA's modules use hangs on the order of the class's modules",
        where=[adapter.path, f"{by} does not tell it"],
        help="save the adapter again with save_projection=True, the default; or merge it with PEFT: merge_and_unload()",
    )


def _check_saved(adapter: Adapter) -> None:
    if adapter.lora and not any("tinylora_P" in parts for parts in adapter.lora.values()):
        raise _untold(adapter, f"save_projection = {adapter.config.get('save_projection')!r}: no tinylora_P")


METHOD = Method(
    "TINYLORA",
    "TinyLoRA",
    "numbers that groups of modules share; which, its random matrices tell: refused where these were not saved",
    effect,
    axes={
        "tinylora_A": ("r", "in"),
        "tinylora_B": ("out", "r"),
        "tinylora_P": ("u", "r", "r"),
        V: ("u",),
    },
    options=said("r u weight_tying projection_seed save_projection init_v_bound tinylora_dropout bias init_weights"),
    partly=lambda part: part == V,
    check=_check_saved,
    prepared=prepared,
    scaled=False,
    layers="nn.Linear, Conv1D, embeddings",
)
