"""What config and tensors of an adapter of these kinds say, without its base."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...errors import AdapterError, SurgeryError, listed
from ...files.peft import Adapter
from ...files.peft_parts import PREFIXES
from ...names import natural
from . import ELSEWHERE, method_of

_OTHERS = {**PREFIXES, "LORA": ("lora_",), "ADALORA": ("lora_",)}


def described(adapter: Adapter) -> dict[str, Any]:
    """The options of its kind, how many modules have which parts, and what they share; nothing for LoRA."""
    method, config = method_of(adapter), adapter.config
    if method is None:
        return {}
    options = {key: config[key] for key in sorted(method.options) if config.get(key) not in (None, False, [], {}, "")}
    parts = Counter(part for parts in adapter.lora.values() for part in parts)
    shared = {part: list(tensor.shape) for part, tensor in sorted(adapter.shared.items())}
    told: dict[str, Any] = {"kind": f"{method.name}: {method.why}", **options}
    told |= {"parts": {part: parts[part] for part in sorted(parts, key=natural)}} if parts else {}
    return told | ({"shared": shared} if shared else {})


def contradictions(adapter: Adapter) -> list[str]:
    """What adapter_config.json says of the kind, and the tensors do not, one line each; nothing for LoRA."""
    method = method_of(adapter)
    if method is None:
        return []
    found = [*_of_others(adapter), *_empty(adapter)]
    if not adapter.lora:
        found.append(f"adapter_config.json says {method.peft_type}, and no tensor is of that kind")
    if adapter.config.get("save_projection") and not adapter.shared:
        found.append("save_projection is true, and the file has nothing that its modules share")
    try:
        method.check(adapter)
    except SurgeryError as error:
        found.append(": ".join((error.what, *error.where[1:])))
    return found


def check_same_kind(adapter: Adapter) -> None:
    """Raise AdapterError where no tensor is of the kind that adapter_config.json says, and some are of another."""
    own = _OTHERS.get(str(adapter.config.get("peft_type")), ())
    mine = any(part.startswith(own) for parts in adapter.lora.values() for part in parts) if own else True
    rows = [] if mine else _of_others(adapter)
    if rows:
        tip = "restore adapter_config.json, or the file, from the training"
        what = "adapter_config.json and the tensors are of different kinds"
        raise AdapterError(what, where=[adapter.path, *rows], help=tip)


def _of_others(adapter: Adapter) -> list[str]:
    """Tensors that are called as those of another kind."""
    kind = str(adapter.config.get("peft_type"))
    if kind in ELSEWHERE:  # one file may hold several
        return []
    own = _OTHERS.get(kind, ())
    held = {*(f"{module}.{part}" for module, parts in adapter.lora.items() for part in parts), *adapter.whole}
    rows = []
    for other, prefixes in _OTHERS.items():
        mine = [name for name in held if _begins(name, prefixes) and not _begins(name, own)]
        if mine and other != kind:
            some = ", ".join(listed(sorted(mine, key=natural), 3))
            rows.append(f"adapter_config.json says {kind}, and {some} are of {other}")
    return rows


def _begins(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(part.startswith(prefixes) for part in name.split(".")) if prefixes else False


def _empty(adapter: Adapter) -> list[str]:
    """Tensors without a first axis; one that is empty along another one is what was asked for, as weights of a topk
    of 1.
    """
    return [
        f"{name} holds no element: an ungathered save looks like this"
        for name, tensor in adapter.tensors.items()
        if not tensor.size and 0 in tensor.shape[:1] and not name.endswith(".zeros")
    ]
