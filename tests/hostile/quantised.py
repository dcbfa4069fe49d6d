"""Quantised checkpoints whose config.json, scales or states say what cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from .headers import file
from .rows import OF_CHECKPOINTS, SHARD, Row, put

NAME = "model.layers.0.mlp.up_proj.weight"
BITS = {"F8_E4M3": 1, "U8": 1, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "I8": 1}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
Shapes = Mapping[str, tuple[str, tuple[int, ...]]]
IN_FP8: Shapes = {NAME: ("F8_E4M3", (128, 256)), f"{NAME}_scale_inv": ("F32", (1, 2))}
MODULE = NAME.removesuffix(".weight")
IN_GPTQ: Shapes = {
    f"{MODULE}.qweight": ("I32", (8, 64)), f"{MODULE}.qzeros": ("I32", (2, 8)), f"{MODULE}.scales": ("F16", (2, 64)),
    f"{MODULE}.g_idx": ("I32", (64,)),
}  # fmt: skip
STATE = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [16, 64]}


def held(shapes: Shapes, contents: Mapping[str, bytes] = {}) -> bytes:
    """A file of tensors of zeros, or of what is given."""
    entries, data = {}, b""
    for name, (dtype, shape) in shapes.items():
        size = BITS[dtype]
        for one in shape:
            size *= one
        raw = contents.get(name, bytes(size))
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    return file(json.dumps(entries), data)


def nf4(state: bytes) -> bytes:
    """A weight of NF4 with that text as its state."""
    blob = f"{NAME}.quant_state.bitsandbytes__nf4"
    shapes: Shapes = {
        NAME: ("U8", (512, 1)), f"{NAME}.absmax": ("F32", (16,)), f"{NAME}.quant_map": ("F32", (16,)),
        blob: ("U8", (len(state),)),
    }  # fmt: skip
    return held(shapes, {blob: state})


def stated(**more: Any) -> bytes:
    return json.dumps({**STATE, **more}).replace("Infinity", "1e400").encode()


CASES: dict[str, tuple[Mapping[str, Any], Callable[[], bytes], str]] = {
    "a method that is none": ({"quant_method": "\x1b[2J"}, partial(held, IN_FP8), ""),
    "a method that is a list": ({"quant_method": ["fp8"]}, partial(held, IN_FP8), ""),
    "blocks of nothing": ({**FP8, "weight_block_size": [0, 0]}, partial(held, IN_FP8), ""),
    "blocks below nothing": ({**FP8, "weight_block_size": [-128, 128]}, partial(held, IN_FP8), ""),
    "blocks that are a text": ({**FP8, "weight_block_size": "128"}, partial(held, IN_FP8), ""),
    "blocks of another number than scales": ({**FP8, "weight_block_size": [1, 1]}, partial(held, IN_FP8), ""),
    "codes without scales": (FP8, partial(held, {NAME: IN_FP8[NAME]}), ""),
    "names that are left out by patterns that explode": (
        {**FP8, "modules_to_not_convert": "(a+)+$"},
        partial(held, IN_FP8),
        "",
    ),
    "groups of nothing": ({**GPTQ, "group_size": 0}, partial(held, IN_GPTQ), ""),
    "groups of 2^62": ({**GPTQ, "group_size": 1 << 62}, partial(held, IN_GPTQ), ""),
    "bits of nothing": ({**GPTQ, "bits": 0}, partial(held, IN_GPTQ), ""),
    "bits of a million": ({**GPTQ, "bits": 1_000_000}, partial(held, IN_GPTQ), ""),
    "bits that are a text": ({**GPTQ, "bits": "4"}, partial(held, IN_GPTQ), ""),
    "bits that are infinite": ({**GPTQ, "bits": 1e400}, partial(held, IN_GPTQ), ""),
    "groups that are none": (GPTQ, partial(held, {**IN_GPTQ, f"{MODULE}.g_idx": ("I32", (3,))}), ""),
    "a state of nothing": (NF4, partial(nf4, b""), ""),
    "a state that is a list": (NF4, partial(nf4, b"[]"), ""),
    "a state that is no text": (NF4, partial(nf4, b"\xff\xfe"), ""),
    "a state of 100,000 objects": (NF4, partial(nf4, b'{"a":' * 100_000), ""),
    "a state of a terabyte": (NF4, partial(nf4, stated(shape=[1 << 20, 1 << 20])), ""),
    "a state of a shape that overflows": (NF4, partial(nf4, stated(shape=[1 << 40, 1 << 40])), ""),
    "a state of blocks of nothing": (NF4, partial(nf4, stated(blocksize=0)), ""),
    "a state of blocks of 10^400": (NF4, partial(nf4, stated(blocksize=10**400)), ""),
    "a state of a dtype that is none": (NF4, partial(nf4, stated(dtype="\x1b[2J")), ""),
    "a state of infinite blocks": (NF4, partial(nf4, stated(blocksize=1e400)), ""),
}


def made(place: Path, said: Mapping[str, Any], shard: Callable[[], bytes]) -> None:
    (place / "x").mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    text = json.dumps({**config, "quantization_config": said}).replace("Infinity", "1e400")
    put(place / "x" / "config.json", text)
    put(place / "x" / SHARD, shard())


def rows() -> Iterator[Row]:
    """Each where its codes are to be decoded."""
    for name, (said, shard, says) in CASES.items():
        make = partial(made, said=said, shard=shard)
        words = ("dequantize x -o w/o",)
        yield Row(f"quantised: {name}", make, says, words, "place/x", OF_CHECKPOINTS)
