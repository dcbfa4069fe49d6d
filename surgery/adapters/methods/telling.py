"""What config and tensors of an adapter of these kinds say, without its base."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ...errors import AdapterError, SurgeryError, listed, series
from ...files.adapter_config import MEND
from ...files.peft import Adapter
from ...files.peft_parts import PREFIXES
from ...lazy.dtypes import F32
from ...lazy.tensor import Shape, Zeros
from ...names import natural
from . import ELSEWHERE, method_of
from .method import Method, Target, effect_of, stated

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
        check_method(adapter, method)
        found += _on_modules(adapter, method)
    except SurgeryError as error:
        found.append(_line(error))
    return found


def check_method(adapter: Adapter, method: Method) -> None:
    """Raise AdapterError where parts are not as large as adapter_config.json says, NotSupported, for what needs no
    base to be seen.
    """
    method.check(adapter)
    wrong: dict[str, list[str]] = {}
    for module, parts in {"": adapter.shared, **adapter.lora}.items():
        for part, tensor in parts.items():
            for what in _sizes(adapter, method, module, part, tensor.shape):
                key = f"{module}.{part}" if module else part
                wrong.setdefault(what, []).append(f"{adapter.path}: {adapter.names[key]}")
    for what, where in wrong.items():
        raise AdapterError(f"adapter_config.json says {what}", where=listed(where), help=MEND)


def _sizes(adapter: Adapter, method: Method, module: str, part: str, shape: Shape) -> list[str]:
    """What the config says, and the shape of a part does not."""
    axes = method.axes.get(part, ())
    told = [
        (key, stated(adapter, module, key), size)
        for key, size in zip(axes, shape, strict=False)  # a kernel's come last, and of others the effect sees
        if key and key not in ("out", "in") and adapter.config.get(key) is not None
    ]
    return [
        f"{key} = {value!r}, and {part} is {shape}"
        for key, value, size in told
        if size != value and not (method.unpatterned and size == adapter.config[key])
    ]


def _on_modules(adapter: Adapter, method: Method) -> list[str]:
    """What a merge would refuse of the modules, whatever the base: their parts, on weights as large as these tell."""
    spans = {module: shape for module in adapter.lora if (shape := _span(adapter, method, module))}
    adapter = method.prepared(adapter, lambda: max((shape[1] for shape in spans.values()), default=1))
    rows = dict[str, list[str]]()
    for module in sorted(spans, key=natural):
        weight, biases = Zeros(F32, spans[module]), (Zeros(F32, spans[module][:1]), None)
        wrong = [what for bias in biases if (what := _refused(Target(adapter, module, weight, bias), method))]
        if len(wrong) == len(biases):  # whether the base has a bias, the parts need not tell
            rows.setdefault(wrong[0], []).append(module)
    return [f"{series(listed(modules, 3))}: {what}" for what, modules in rows.items()]


def _refused(target: Target, method: Method) -> str:
    """Why it is not merged; "" where it is."""
    try:
        effect_of(target, method)
    except SurgeryError as error:
        return error.what
    return ""


def _span(adapter: Adapter, method: Method, module: str) -> Shape | None:
    """The shape of the module's weight, as far as its parts tell it."""
    if method.span:
        return method.span(adapter, module)
    found = {
        key: size
        for part, axes in method.axes.items()
        if part in adapter.lora[module] and len(axes) == len(adapter.lora[module][part].shape)
        for key, size in zip(axes, adapter.lora[module][part].shape, strict=True)
        if key in ("out", "in")
    }
    return (found.get("out", 1), found.get("in", 1)) if found else None


def _line(error: SurgeryError) -> str:
    return ": ".join((error.what, *error.where[1:]))


def check_same_kind(adapter: Adapter) -> None:
    """Raise AdapterError where no tensor is of the kind that adapter_config.json says, and some are of another."""
    own = _OTHERS.get(str(adapter.config.get("peft_type")), ())
    mine = any(part.startswith(own) for parts in adapter.lora.values() for part in parts) if own else True
    rows = [] if mine else _of_others(adapter)
    if rows:
        tip = "restore adapter_config.json, or the file, from the training"
        what = "adapter_config.json and the tensors are of different kinds"
        raise AdapterError(what, where=[adapter.path, *rows], help=tip)


def kinds_of(adapter: Adapter) -> list[str]:
    """The kinds as which its tensors are called."""
    names = [*(f"{module}.{part}" for module, parts in adapter.lora.items() for part in parts), *adapter.whole]
    return [kind for kind, prefixes in _OTHERS.items() if any(_begins(name, prefixes) for name in names)]


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
