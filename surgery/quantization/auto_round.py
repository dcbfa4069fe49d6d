"""auto-round: codes as GPTQ or AWQ pack them, under a name of its own; `packing_format` says which.

`extra_config` says of single modules that they have other bits, or none. Source: auto-round 0.16
(`inference/backend.py`, `inference/convert_model.py`, `auto_round_extension/torch`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..patterns.rule import rule_or_none
from . import awq
from .gptq import Grid, check_complete, given, modules, weight_of
from .scheme import Quantised, Scheme, Source

STEPS = {"auto_round:auto_gptq": 1, "auto_round:gptqmodel": 0, "auto_round": 0}  # added to zeros, packed as GPTQ does
AWQ = "auto_round:auto_awq"
PLAIN = 16  # bits from which on a module is not quantised


def find(source: Source) -> dict[str, Quantised]:
    """Every module with codes. Raises FormatError where config.json contradicts them, NotSupported for another
    packing, data that are no integers, and rotated weights.
    """
    said = source.said
    how = str(said.get("packing_format") or "auto_round:auto_gptq")
    _check_read(source, how)
    bits, group = (source.number(key, said.get(key)) for key in ("bits", "group_size"))
    found: dict[str, Quantised] = {}
    for module in modules(source):
        grid = given(source, module, Grid(bits, group, STEPS.get(how, 0)), _of(source, module))
        if how == AWQ and grid.bits != 4:
            raise source.broken(f"{module} has {grid.bits} bits, and AWQ's packing has 4", [f"{module}.qweight"])
        one = awq.weight_of(source, module, grid.group) if how == AWQ else weight_of(source, module, grid)
        found[f"{module}.weight"] = one
    check_complete(source, found)
    return found


def _check_read(source: Source, how: str) -> None:
    """Raise NotSupported for what is packed otherwise, or is more than codes."""
    kind = str(source.said.get("data_type") or "int")
    if how not in (*STEPS, AWQ):
        what, why = f"packed as `{how}`", f"read are {', '.join((*STEPS, AWQ))}"
    elif kind != "int":
        what, why = f"as `{kind}`", "read are integers"
    elif source.said.get("rotation_config"):
        what, why = "after a rotation", "the rotation lies beside them"
    else:
        return
    raise source.unread(f"weights quantised by auto-round {what} are not read: {why}")


def _of(source: Source, module: str) -> Mapping[str, Any] | None:
    """What is said of one module alone, by its name or a pattern. None: that it is not quantised."""
    said = source.said.get("extra_config") or {}
    if not isinstance(said, Mapping):
        raise source.broken(f"`extra_config` is {said!r}, and says nothing of single modules", ["extra_config"])
    more = said.get(module, next((more for name, more in said.items() if _means(name, module)), {}))
    if not isinstance(more, Mapping):
        raise source.broken(f"`extra_config` says {more!r} of a module", [module])
    bits = more.get("bits")
    return None if isinstance(bits, int) and bits >= PLAIN else more


def _means(name: str, module: str) -> bool:
    rule = rule_or_none(name)
    return rule is not None and rule.fullmatch(module)


WHY = "auto-round's own loader is the one that reads it, and it knows modules without codes by their bits alone"
SCHEME = Scheme("auto-round", find, why=WHY, files=("quantization_config.json", "quantize_config.json"))
