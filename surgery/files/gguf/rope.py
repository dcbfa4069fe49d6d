"""Tables of rotation that a GGUF keeps as tensors, and config.json says in numbers: Llama 3, long Phi-3."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from ..opening import regular
from .header import Header, Info

LLAMA3, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
TABLES = (LLAMA3, LONG, SHORT)
MOST = 1 << 12  # elements
FACTORS = (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)
LENGTHS = (8192, 4096, 16384, 2048, 32768)


def rotation(header: Header, tensors: Mapping[str, Info], model_type: str, theta: float) -> dict[str, Any]:
    """What config.json says of the tables there; {} where it cannot say it."""
    first = header.number(f"{header.text('general.architecture')}.rope.scaling.original_context_length")
    if LONG in tensors and SHORT in tensors and model_type == "phi3":
        long, short = (_numbers(header, tensors[name]) for name in (LONG, SHORT))
        return {"rope_scaling": {"rope_type": "longrope", "long_factor": long, "short_factor": short}}
    if LLAMA3 in tensors and (table := _numbers(header, tensors[LLAMA3])):
        lengths = (first, *LENGTHS) if first else LENGTHS
        for length in lengths:
            for factor in FACTORS:
                if _is(table, _llama3(2 * len(table), theta, factor, length)):
                    return {"rope_scaling": _said(factor, length)}
    return {}


def _said(factor: float, length: int) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": length,
    }


def _llama3(width: int, theta: float, factor: float, length: int) -> list[float]:
    """What frequencies are divided by: nothing where waves are short, all of `factor` where they are long."""
    low, high = 1.0, 4.0
    found = []
    for i in range(0, width, 2):
        wave = 2 * math.pi * theta ** (i / width)
        smooth = (length / wave - low) / (high - low)
        between = 1 / ((1 - smooth) / factor + smooth)
        found.append(1.0 if wave < length / high else factor if wave > length / low else between)
    return found


def _is(table: list[float], wanted: list[float]) -> bool:
    """Whether they are the same, as float32 computes them; more than one number must be other than one."""
    return all(abs(a - b) <= 1e-4 * b for a, b in zip(table, wanted, strict=True)) and any(b != 1 for b in wanted)


def _numbers(header: Header, one: Info) -> list[float]:
    """The content of a small tensor of float32."""
    if one.kind.name != "F32" or one.nbytes > 4 * MOST:
        return []
    with open(header.file.path, "rb", opener=regular) as stream:
        stream.seek(one.offset)
        return list(struct.unpack(f"<{one.nbytes // 4}f", stream.read(one.nbytes)))
