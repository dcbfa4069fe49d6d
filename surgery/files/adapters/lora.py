"""LoRA of another tool as an `Adapter` in PEFT's terms."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from ...errors import AdapterError
from ...lazy.tensor import Tensor
from ..peft import Adapter
from .format import Found

# Last names of embeddings, whose LoRA is the other way round: what a file does not say of a module, but its name.
EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"})
_Number = TypeVar("_Number", int, float)


def lora_adapter(
    found: Found,
    tool: str,
    modules: Mapping[str, Mapping[str, Tensor]],
    names: Mapping[str, str],
    ranks: Mapping[str, tuple[int, float | None]],
    **more: Any,
) -> Adapter:
    """The adapter of these modules, each with its rank and alpha. `names` are those in the file, by `module.part`;
    `more` goes into the config, but for what are fields of an `Adapter`: `whole`, `dropped`, `notes`.
    """
    fields = {key: more.pop(key) for key in ("whole", "dropped", "notes", "dialect") if key in more}
    if not modules and not fields.get("whole"):
        tip = "it was saved from an untrained or ungathered model"
        raise AdapterError("the adapter holds no tensor", where=[found.path], help=tip)
    config = {"peft_type": "LORA", **numbers(ranks), "target_modules": sorted(modules), **more}
    return Adapter(found.path, config, modules, fields.pop("whole", {}), names, metadata=found.metadata, **fields)


def numbers(ranks: Mapping[str, tuple[int, float | None]]) -> dict[str, Any]:
    """Rank and alpha of each module, as adapter_config.json says them."""
    r = _usual((rank for rank, _ in ranks.values()), 8)
    alphas = {module: alpha for module, (_, alpha) in ranks.items() if alpha is not None}
    alpha = _usual(alphas.values(), 8.0) if alphas or not ranks else None
    return {
        "r": r,
        "lora_alpha": None if alpha is None else plain(alpha),
        "rank_pattern": {f"^{re.escape(module)}": rank for module, (rank, _) in ranks.items() if rank != r},
        "alpha_pattern": {f"^{re.escape(module)}": plain(one) for module, one in alphas.items() if one != alpha},
    }


def plain(value: float) -> float:
    """The number without a point where it needs none."""
    return int(value) if value == int(value) else value


def is_embedding(module: str) -> bool:
    """Whether the module's last name is an embedding's."""
    return module.rpartition(".")[2] in EMBEDDINGS


def _usual(values: Iterable[_Number], default: _Number) -> _Number:
    return next((value for value, _ in Counter(values).most_common(1)), default)


def renamed(adapter: Adapter, new: Mapping[str, str]) -> Adapter:
    """The adapter with other names for its modules, each with its rank and alpha."""
    names = {f"{new[m]}.{part}": adapter.names[f"{m}.{part}"] for m, parts in adapter.lora.items() for part in parts}
    patterns = {
        table: {f"^{re.escape(new[m])}": said[f"^{re.escape(m)}"] for m in adapter.lora if f"^{re.escape(m)}" in said}
        for table in ("rank_pattern", "alpha_pattern")
        for said in [adapter.config.get(table) or {}]
    }
    return replace(
        adapter,
        lora={new[module]: parts for module, parts in adapter.lora.items()},
        names={**names, **{key: adapter.names[key] for key in adapter.whole}},
        config={**adapter.config, **patterns, "target_modules": sorted(new.values())},
    )
