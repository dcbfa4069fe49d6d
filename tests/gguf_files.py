"""GGUF files: laid out by hand, byte by byte, and models as the converter of llama.cpp lays them out, written by the
package `gguf`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

TEXT, ARRAY, U32, F32 = 8, 9, 4, 6


def text(value: str | bytes) -> bytes:
    """A text with its length before it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, raw: bytes) -> bytes:
    """A key with its value, as it lies in the file."""
    return text(name) + struct.pack("<I", kind) + raw


def entry(name: str, sizes: Sequence[int], kind: int, offset: int) -> bytes:
    """A row of the table of tensors."""
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def laid_out(
    keys: Sequence[bytes] = (),
    entries: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of these parts; `counts` of tensors and keys are what it claims."""
    tensors, many = counts if counts is not None else (len(entries), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, many) + b"".join(keys) + b"".join(entries)
    return head + bytes(-len(head) % alignment) + data


def write(path: Path, arch: str, keys: Mapping[str, Any], tensors: Mapping[str, Any], **how: Any) -> Path:
    """A file as the package writes it; a tensor may be an array, or codes with their type."""
    writer = gguf.GGUFWriter(path, arch, **how)
    for name, value in keys.items():
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    for name, value in tensors.items():
        array, kind = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def laced(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k as llama.cpp stores them of Llama."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def coded(array: np.ndarray, kind: str) -> Any:
    """Codes of an array, or random blocks of a type that the package cannot make."""
    quant = gguf.GGMLQuantizationType[kind]
    try:
        return gguf.quantize(array, quant), quant
    except NotImplementedError:
        wide, size = gguf.GGML_QUANT_SIZES[quant]
        return random_blocks(kind, array.size // wide).reshape(*array.shape[:-1], array.shape[-1] // wide * size), quant


SCALES = {  # where a block has float16 numbers
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "MXFP4": (),
}


def random_blocks(kind: str, count: int, seed: int = 0) -> np.ndarray:
    """Blocks of random bytes, whose scales are numbers, great and small."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]), dtype=np.uint8)
    for at in SCALES[kind]:
        scales = (rng.standard_normal(count) * 0.01).astype(np.float16)
        raw[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if kind == "MXFP4":
        raw[:, 0] = raw[:, 0] % 20 + 110
    return raw


Names = Callable[[str], str | None]


def of_model(model: torch.nn.Module, name_of: Names, layers: int) -> dict[str, np.ndarray]:
    """The model's tensors under the names of GGUF, as float32."""
    return {
        name: tensor.detach().float().numpy().copy()
        for called, tensor in model.state_dict().items()
        if (name := name_of(called)) is not None
    }
