"""Another dtype for the weights, and for config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import SurgeryError, listed
from ..lazy.dtypes import ARITHMETIC, BF16, F16, F32, F64, Dtype, Kind
from ..lazy.tensor import in_dtype
from ..names import natural

NAMES = {"float16": F16, "bfloat16": BF16, "float32": F32, "float64": F64}
SHORT = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
# What holds every value of a dtype.
WIDER = {F16: (F32, F64), BF16: (F32, F64), F32: (F64,), F64: ()}


def cast(checkpoint: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint in `dtype` ("bfloat16", ...), and config.json says so. What is computed anyway is still rounded
    once.

    That is: each tensor of the dtype that most weights have, and each of which `dtype` holds every value. Others,
    such as the float32 router of a bfloat16 model, keep theirs, and a note names them: transformers would keep them
    too.
    """
    new, dtype = parsed(dtype), SHORT.get(dtype, dtype)
    floats = {n: t for n, t in checkpoint.tensors.items() if t.dtype.kind is Kind.FLOAT}
    sizes = Counter[Dtype]()
    for tensor in floats.values():
        sizes[tensor.dtype] += tensor.size
    main = max((d for d in sizes if d in ARITHMETIC), key=lambda d: sizes[d], default=new)
    kept = {n for n, t in floats.items() if t.dtype not in (main, new) and new not in WIDER.get(t.dtype, ())}
    tensors = {n: in_dtype(t, new) if n in floats and n not in kept else t for n, t in checkpoint.tensors.items()}
    made = replace(checkpoint, tensors=tensors)
    if "config.json" in checkpoint.files:
        made = made.with_config(_with_dtype(checkpoint.config, dtype))
    named = ", ".join(listed([f"{n} ({floats[n].dtype})" for n in sorted(kept, key=natural)]))
    note = f"kept in their own dtype, since they are in another one than most weights: {named}"
    return made.with_step(
        {"surgery": "cast", "dtype": str(new), "kept": len(kept)}, notes=(*made.notes, *([note] if kept else []))
    )


def parsed(dtype: str) -> Dtype:
    """What a user calls "bfloat16", or "bf16". Raises SurgeryError for what weights are not written in."""
    name = SHORT.get(dtype, dtype)
    if name not in NAMES:
        raise SurgeryError(
            f"`{dtype}` is no dtype to write weights in", help=f"one of {', '.join(NAMES)}, or {', '.join(SHORT)}"
        )
    return NAMES[name]


def _with_dtype(config: Mapping[str, Any], dtype: str, *, top: bool = True) -> dict[str, Any]:
    """The config with `dtype` wherever it says one, in nested configs too; on top where it says none."""
    nested = {
        key: value for key, value in config.items() if isinstance(value, Mapping) and key != "quantization_config"
    }
    made = {**config, **{key: _with_dtype(value, dtype, top=False) for key, value in nested.items()}}
    said = [key for key in ("dtype", "torch_dtype") if key in config and isinstance(config[key], str | None)]
    return made | dict.fromkeys(said or (["dtype"] if top else []), dtype)
