"""BD-LoRA: one of the two factors is block-diagonal, and only its blocks are stored, one below the other.

    A (r, in / n)  ->  (r, in), or B (out, r / n)  ->  (out, r):  block i of the rows stands in columns i of the n

Which of them it is, `use_bdlora` says by parts of module names. Source: peft 0.21.2, tuners/lora/variants.py
`BdLoraLinearVariant.init`, `BlockDiagonalLinear.weight_as_blockdiagonal_matrix`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import AdapterError
from ..files.peft import Adapter
from ..lazy.tensor import Tensor, Zeros, concat, narrow

OPTION = "use_bdlora"
_FACTORS = {"lora_A.weight": "target_modules_bd_a", "lora_B.weight": "target_modules_bd_b"}


def without_blocks(adapter: Adapter) -> Adapter:
    """A BD-LoRA adapter with whole factors, an ordinary LoRA; any other adapter as it is. Raises AdapterError."""
    said = adapter.config.get(OPTION)
    if not said:
        return adapter
    count = said.get("nblocks", 1) if isinstance(said, Mapping) else 0
    if (
        not isinstance(count, int)
        or isinstance(count, bool)
        or count < 1
        or not all(_is_list(said.get(key)) for key in _FACTORS.values())
    ):
        where = [f"{adapter.path}/adapter_config.json", f"{OPTION} = {said!r}"]
        raise AdapterError(
            "it is not said which factors are stored as blocks", where=where, help="restore the file from the training"
        )
    lora = {module: {**parts, **_whole(adapter, module, said, count)} for module, parts in adapter.lora.items()}
    return replace(adapter, lora=lora, config={**adapter.config, OPTION: None})


def _is_list(value: Any) -> bool:
    return value is None or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _whole(adapter: Adapter, module: str, said: Mapping[str, Any], count: int) -> dict[str, Tensor]:
    """The module's factors that are stored as blocks, as matrices."""
    parts = adapter.lora[module]
    found = [part for part, key in _FACTORS.items() if any(name in module for name in said.get(key) or ())]
    where = [adapter.path, f"{module}: {OPTION} = {said!r}"]
    if len(found) > 1:
        raise AdapterError(
            "A and B are both said to be stored as blocks", where=where, help="restore the file from the training"
        )
    there = {part: parts[part] for part in found if part in parts}
    for part, tensor in there.items():
        if len(tensor.shape) != 2 or not tensor.size or tensor.shape[0] % count:
            what = f"{tensor.shape} are not {count} blocks, one below the other"
            raise AdapterError(what, where=[f"{adapter.path}: {adapter.names[f'{module}.{part}']}", where[1]])
    return {part: diagonal(tensor, count) for part, tensor in there.items()}


def diagonal(tensor: Tensor, count: int) -> Tensor:
    """The tensor's `count` blocks of rows on a diagonal, zeros elsewhere: (rows, columns) -> (rows, count *
    columns).
    """
    high, wide = tensor.shape[0] // count, tensor.shape[1]
    rows = []
    for i in range(count):
        before, after = ([Zeros(tensor.dtype, (high, n * wide))] if n else [] for n in (i, count - 1 - i))
        rows.append(concat([*before, narrow(tensor, 0, i * high, high), *after], 1))
    return concat(rows, 0)
