"""What adapters leave as it is, where one would think that they change it: modules that their config aims at, and
factors that are zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...adapters.consistency import without_factors
from ...adapters.lora import BIAS
from ...checkpoint import Checkpoint
from ...errors import listed
from ...files.peft import Adapter
from ...lazy.tensor import Tensor, Zeros
from ...models.names_v5 import in_memory, renames_of

_FACTORS = ("lora_B.weight", "lora_embedding_A", "lora_E", "lora_A.weight", "lora_embedding_B")
_LAYER = re.compile(r"(?:model\.)?(?:language_model\.)?(?:model\.)?layers\.(?P<number>\d+)\.")


def notes_on_unadapted(adapter: Adapter, base: Checkpoint) -> list[str]:
    """Notes on modules that the config aims at in the class in memory, and that have no factors; and on factors that
    change nothing.
    """
    notes = []
    if idle := _idle(adapter, base):
        notes.append(
            f"adapter_config.json aims at {len(idle)} modules that {adapter.path} has no factors for:"
            f" {', '.join(listed(idle, 3))}"
        )
    if adapter.lora and all(map(_is_zero, adapter.lora.values())):
        rest = "" if adapter.whole else ": the adapter was not trained, or not saved after it was"
        notes.append(f"the LoRA of {adapter.path} changes nothing, since one factor of each module is zero{rest}")
    return notes


def _idle(adapter: Adapter, base: Checkpoint) -> list[str]:
    """The modules of the class that the adapter was trained in, as far as that is told, which are aimed at."""
    renames = renames_of(base.config)
    loaded = {name: in_memory(name, renames) for name in base.tensors}
    norms = any(".ln_tuning_layers." in name for name in adapter.names.values())
    idle = without_factors(adapter, base.tensors, norms=norms)
    there = {loaded[f"{module}.weight"]: base.tensors[f"{module}.weight"] for module in idle}
    aimed = set(without_factors(_anywhere(adapter), there, norms=norms))
    parts = {module.partition(".")[0] for module in adapter.lora} if _is_part(adapter, base) else None
    return [
        module
        for module in idle
        if loaded[f"{module}.weight"].removesuffix(".weight") in aimed
        and (parts is None or module.partition(".")[0] in parts)
        and not _is_drafting(module, base.config)
    ]


def _anywhere(adapter: Adapter) -> Adapter:
    """The adapter without its tensors: what its config aims at, whatever it holds."""
    return Adapter(adapter.path, adapter.config, {}, {}, {})


def _is_part(adapter: Adapter, base: Checkpoint) -> bool:
    """Whether the adapter was trained in a class that holds a part of the base, such as its encoder."""
    noted: Any = adapter.config.get("auto_mapping")
    name = noted.get("base_model_class") if isinstance(noted, Mapping) else None
    if name is None:
        return str(adapter.config.get("task_type") or "").upper() == "FEATURE_EXTRACTION"
    return name not in (base.config.get("architectures") or [])


def _is_drafting(module: str, config: Mapping[str, Any]) -> bool:
    """Whether the module is of layers that predict further tokens, which transformers' classes do not load."""
    text = config.get("text_config")
    said = [one.get("num_hidden_layers") for one in (config, text) if isinstance(one, Mapping)]
    layers = [count for count in said if isinstance(count, int)]
    found = _LAYER.match(module)
    return "mtp" in module.split(".") or bool(found and layers and int(found["number"]) >= max(layers))


def _is_zero(parts: Mapping[str, Tensor]) -> bool:
    """Whether the LoRA of a module adds nothing: one of its factors is zero, and it has no more to add.

    Reads a factor up to the first window that is not zero.
    """
    from ...evaluation.compare import same

    def zero(name: str) -> bool:
        return same(parts[name], Zeros(parts[name].dtype, parts[name].shape))

    if any("magnitude" in name or name == "m.weight" for name in parts) or (BIAS in parts and not zero(BIAS)):
        return False
    return any(zero(name) for name in _FACTORS if name in parts)
