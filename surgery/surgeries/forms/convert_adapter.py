"""An adapter in another tool's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotPlaced, SurgeryError
from ...files.adapters.format import TOLD
from ...files.called import called
from ...files.peft import Adapter
from ...opened import takes_opened
from ..merging.held_weights import without_own_base
from ..merging.spelled import in_base_names
from ..merging.unspelled import not_spelled
from .mlx import to_mlx
from .peft import to_peft

FORMS: Mapping[str, Callable[[Adapter], Adapter | Checkpoint]] = {"peft": to_peft, "mlx": to_mlx}


@takes_opened
def convert_adapter(adapter: Adapter, to: str = "peft", base: Checkpoint | None = None) -> Adapter | Checkpoint:
    """The adapter as the tool `to` writes it: "peft", an adapter; "mlx", its two files as a checkpoint to be written.

    It does to a model what it did; nothing is rounded. `base` is asked for where the file calls modules, or orders
    rows, otherwise than the base does, or holds weights of the base beside its LoRA. Raises AdapterError where it is
    needed, NotPlaced where it has no such modules, NotSupported for what the form cannot say.
    """
    if to not in FORMS:
        raise SurgeryError(f"there is no form `{to}` of adapters to write", help=f"one of {', '.join(FORMS)}")
    made = FORMS[to](_placed(adapter, base))
    step: dict[str, Any] = {"surgery": "convert_adapter", "to": to, "adapter": called(adapter.path)}
    step |= {key: adapter.format[key] for key in TOLD if key in adapter.format}
    return replace(made, history=(*adapter.history, step))


def _placed(adapter: Adapter, base: Checkpoint | None) -> Adapter:
    """The adapter under the base's names, without the base's weights."""
    own = [f"{module}.weight" for module in adapter.lora if f"{module}.weight" in adapter.whole]
    if base is None:
        if adapter.dialect or own:
            why = f"its modules are called as {adapter.dialect} does" if adapter.dialect else f"it holds {own[0]}"
            tip = "name the base that it belongs to: --base BASE"
            raise AdapterError(f"the adapter's form depends on its base: {why}", where=[adapter.path], help=tip)
        return adapter
    found = in_base_names(base, adapter)
    if found.dialect:
        lost = [module for module in found.lora if f"{module}.weight" not in base.tensors]
        raise not_spelled(base, found, lost) if lost else NotPlaced("no module is the base's", where=[adapter.path])
    return without_own_base(base, found)
