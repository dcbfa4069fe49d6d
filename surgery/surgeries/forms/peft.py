"""An adapter as PEFT's folder: LoRA of any tool, and the kinds that PEFT has by the same names of parts."""

from __future__ import annotations

from dataclasses import replace

from ...adapters.fused import Rank
from ...adapters.lora import strength
from ...adapters.low_rank import as_low_rank, is_inside
from ...errors import NotSupported
from ...files.peft import PREFIX, Adapter, parse_adapter
from ...files.peft_parts import PREFIXES
from ..algebra.saying import as_adapter, config_of


def to_peft(adapter: Adapter) -> Adapter:
    """The adapter as PEFT saves it. Raises NotSupported for a kind that PEFT has not."""
    kind = str(adapter.config.get("peft_type"))
    if kind in PREFIXES:
        return _named(adapter)
    plain = as_low_rank(adapter)
    ranks = {module: Rank(*strength(plain.config, module)[:2]) for module in plain.lora}
    config = {**config_of([plain], ranks), "use_dora": bool(plain.config.get("use_dora"))}
    config["use_rslora"] = bool(plain.config.get("use_rslora"))
    inside = {module for module in plain.lora if is_inside(plain, module)}
    made = as_adapter(adapter.path, config, plain.lora, plain.whole, plain.parameters, inside)
    return replace(made, inputs=plain.inputs, dropped=plain.dropped, notes=plain.notes)


def _named(adapter: Adapter) -> Adapter:
    """The same parts under PEFT's names."""
    if adapter.whole:
        what = "an adapter that holds weights of the base whole has no form in PEFT but with LoRA"
        raise NotSupported(what, where=[adapter.path], help="merge it: surgery merge BASE ADAPTER -o OUT")
    tensors = {f"{PREFIX}{m}.{part}": one for m, parts in adapter.lora.items() for part, one in parts.items()}
    tensors |= {f"base_model.{part}": one for part, one in adapter.shared.items()}
    made = parse_adapter(adapter.path, adapter.config, tensors)
    return replace(made, inputs=adapter.inputs, dropped=adapter.dropped, notes=adapter.notes)
