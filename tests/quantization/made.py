"""Quantised weights made by the packages that define them, and what these decode them to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from safetensors import safe_open

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    """The stored tensors of a module `m`, what config.json says, and the weight that the reference decodes; `header` is
    the `__metadata__` of its shard."""

    tensors: Tensors
    config: dict[str, object]
    weight: torch.Tensor
    codes: str = "m.weight"
    header: dict[str, str] = field(default_factory=dict)


def weights(shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Numbers as weights have them, an empty row among them."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    made[..., 0, :] = 0
    return made.to(dtype)


def bitsandbytes_4bit(
    shape: tuple[int, int], kind: str, block: int, double: bool, dtype: torch.dtype, storage: torch.dtype = torch.uint8
) -> Made:
    """Quantised and decoded by bitsandbytes; by what it calls the default where its kernel for the CPU takes the
    scales of other rows, which it does where a block is wider than a row.
    """
    from bitsandbytes import functional
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

    value = weights(shape, dtype=dtype)
    codes, state = functional.quantize_4bit(
        value, blocksize=block, quant_type=kind, compress_statistics=double, quant_storage=storage
    )
    decoded = functional.dequantize_4bit(codes, state)
    if block > shape[1]:
        scales = state.absmax
        if double:
            scales = functional.dequantize_blockwise(scales, state.state2) + state.offset
        raw = codes.view(torch.uint8).reshape(-1)
        decoded = _dequantize_4bit_compute(raw, scales.float(), state.code, block, shape, dtype)
    parts = {f"m.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    return Made({"m.weight": codes, **parts}, said, decoded)


def bitsandbytes_8bit(shape: tuple[int, int], dtype: torch.dtype) -> Made:
    """LLM.int8, by bitsandbytes on the CPU."""
    from bitsandbytes import functional

    codes, scale, _ = functional.int8_vectorwise_quant(weights(shape, dtype=torch.float16))
    decoded = functional.int8_vectorwise_dequant(codes, scale).to(dtype)
    parts = {"m.weight": codes, "m.SCB": scale, "m.weight_format": torch.tensor(0, dtype=torch.uint8)}
    return Made(parts, {"quant_method": "bitsandbytes", "load_in_8bit": True}, decoded)


def fp8(shape: tuple[int, ...], block: tuple[int, int] | None, scale: torch.dtype, dtype: torch.dtype) -> Made:
    """Blocks from the top left, the last of which are cut; decoded in float32, and rounded once."""
    value = weights(shape).float()
    rows, columns = shape[-2:]
    tall, wide = block or (rows, columns)
    padded = torch.zeros(*shape[:-2], -(-rows // tall) * tall, -(-columns // wide) * wide)
    padded[..., :rows, :columns] = value
    parts = padded.unflatten(-1, (-1, wide)).unflatten(-3, (-1, tall))
    scales = (parts.abs().amax((-1, -3)).clamp(min=1e-8) / 448).to(scale)
    if scale == torch.float8_e8m0fnu:
        scales = (parts.abs().amax((-1, -3)).clamp(min=1e-8) / 448).log2().ceil().exp2().to(scale)
    each = scales.float().repeat_interleave(tall, -2).repeat_interleave(wide, -1)[..., :rows, :columns]
    codes = (value / each).clamp(-448, 448).to(torch.float8_e4m3fn)
    said = {"quant_method": "fp8", "weight_block_size": list(block) if block else None}
    if not block:
        scales = scales.reshape(scales.shape[:-2])
    return Made({"m.weight": codes, "m.weight_scale_inv": scales}, said, (codes.float() * each).to(dtype))


@cache
def fixtures(family: str) -> dict[str, Callable[[], Made]]:
    """Cases that were made once with packages that are not installed for the tests: fixtures/make_*.py."""
    with safe_open(Path(__file__).parent / f"fixtures/{family}.safetensors", "pt") as file:
        said, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def make(case: str) -> Made:
        parts = {n.removeprefix(f"{case}/"): t for n, t in tensors.items() if n.startswith(f"{case}/")}
        weight = parts.pop("weight")
        codes = next(n for n in parts if n.endswith(("qweight", "qdata", "m.weight")))
        return Made(parts, json.loads(said[case]), weight, codes, json.loads(said.get(f"header/{case}", "{}")))

    cases = sorted(case for case in said if not case.startswith("header/"))
    return {case: lambda case=case: make(case) for case in cases}  # type: ignore[misc]


def compressed(shape: tuple[int, ...], kind: str, dtype: torch.dtype = torch.bfloat16, **args: object) -> Made:
    """By a compressor of compressed-tensors; what it makes of them again."""
    parts, decoded = compress(weights(shape, dtype=dtype), kind, args)
    codes = "m.weight_packed" if "weight_packed" in parts else "m.weight"
    return Made({f"m.{name}": part for name, part in parts.items()}, said_of_compressed(kind, args), decoded, codes)


def compress(value: torch.Tensor, kind: str, args: Mapping[str, object]) -> tuple[Tensors, torch.Tensor]:
    """What compressed-tensors stores of a weight, under scales that cover its numbers, and what it decodes."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args), format=kind)  # type: ignore[arg-type]
    compressor = BaseCompressor.get_value_from_registry(kind)
    stored = compressor.compress({"weight": value, **_scales(value, scheme.weights)}, scheme)
    decoded = compressor.decompress(stored, scheme)["weight"].detach()
    return {name: tensor.detach() for name, tensor in stored.items()}, decoded


def said_of_compressed(kind: str, args: Mapping[str, object]) -> dict[str, object]:
    """What config.json says of it."""
    from compressed_tensors.quantization import QuantizationArgs

    weights = json.loads(QuantizationArgs(**args).model_dump_json())  # type: ignore[arg-type]
    group = {"targets": ["Linear"], "format": kind, "weights": weights}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group}, "ignore": []}


def _scales(value: torch.Tensor, args: object) -> Tensors:
    """Scales, and zero points, that compressed-tensors computes of the least and the greatest numbers of a group."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    assert isinstance(args, QuantizationArgs)
    rows, columns = value.shape[-2:]
    tall, wide = {
        "tensor": (rows, columns),
        "channel": (1, columns),
        "block": tuple(args.block_structure or ()),
    }.get(str(args.strategy), (1, args.group_size))
    padded = torch.zeros(*value.shape[:-2], -(-rows // tall) * tall, -(-columns // wide) * wide, dtype=value.dtype)
    padded[..., :rows, :columns] = value
    cells = padded.unflatten(-1, (-1, wide)).unflatten(-3, (-1, tall))
    outer = generate_gparam(value.amin(), value.amax()) if args.strategy == "tensor_group" else None
    scale, zero = calculate_qparams(cells.amin((-1, -3)), cells.amax((-1, -3)), args, global_scale=outer)
    made = {"weight_scale": scale, "weight_zero_point": zero, "weight_global_scale": outer}
    if args.strategy == "tensor":
        made = {name: tensor.reshape(1) for name, tensor in made.items() if tensor is not None}
    return {name: tensor for name, tensor in made.items() if tensor is not None}


def padded_words(shape: tuple[int, int], bits: int, group: int, symmetric: bool) -> Made:
    """pack-quantized as it was written before words became one stream: so many whole fields in a word of 32 bits."""
    made = compressed(
        shape, "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=group, symmetric=symmetric
    )
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    def again(name: str, size: tuple[int, int], along: int) -> torch.Tensor:
        codes = unpack_from_int32(made.tensors[name], bits, torch.Size(size), along).long() + (1 << (bits - 1))  # type: ignore[arg-type]
        codes, fields = codes.movedim(along, -1), 32 // bits
        words = torch.zeros(codes.shape[0], -(-codes.shape[1] // fields), dtype=torch.int64)
        for i in range(codes.shape[1]):
            words[:, i // fields] |= codes[:, i] << (i % fields * bits)
        return words.to(torch.int32).movedim(-1, along).contiguous()

    tensors = {**made.tensors, made.codes: again(made.codes, shape, 1)}
    if not symmetric:
        tensors["m.weight_zero_point"] = again("m.weight_zero_point", (shape[0], -(-shape[1] // group)), 0)
    return Made(tensors, made.config, made.weight, made.codes)


def ordered_groups(shape: tuple[int, int], group: int, symmetric: bool) -> Made:
    """pack-quantized with columns that are no neighbours in a group (`weight_g_idx`), decoded by the formula."""
    made = compressed(
        shape, "pack-quantized", num_bits=4, type="int", strategy="group", group_size=group, symmetric=symmetric
    )
    index = torch.randperm(shape[1], generator=torch.Generator().manual_seed(5)) // group
    scale = made.tensors["m.weight_scale"].float()
    grid = scale.repeat_interleave(group, 1)
    codes = (made.weight.float() / grid).nan_to_num().round()
    parts = {**made.tensors, "m.weight_g_idx": index.to(torch.int32)}
    if symmetric:
        return Made(parts, made.config, (codes * scale[:, index]).to(made.weight.dtype), made.codes)
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    raw = unpack_from_int32(made.tensors[made.codes], 4, torch.Size(shape)).float()
    zero = unpack_from_int32(made.tensors["m.weight_zero_point"], 4, scale.shape, 0).float()
    return Made(parts, made.config, ((raw - zero[:, index]) * scale[:, index]).to(made.weight.dtype), made.codes)


def gpt_oss(shape: tuple[int, int, int]) -> Made:
    """Blocks and scales of experts (experts, out, in), and what transformers makes of them, (experts, in, out)."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    experts, rows, columns = shape
    draw = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=draw).to(torch.uint8)
    scales = torch.randint(0, 200, (experts, rows, columns // 32), generator=draw).to(torch.uint8)
    decoded = convert_moe_packed_tensors(blocks, scales)
    parts = {"m.weight_blocks": blocks, "m.weight_scales": scales}
    return Made(parts, {"quant_method": "mxfp4"}, decoded, "m.weight_blocks")


def fbgemm(shape: tuple[int, ...], tall: bool) -> Made:
    """Rows with a scale each, or, of experts, columns, whose scales lie in a row, or are as tall as many of them."""
    value = weights(shape).float()
    axis = 1 if len(shape) == 3 else -1
    scale = value.abs().amax(axis, keepdim=True).clamp(min=1e-8) / 448
    codes = (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
    decoded = (codes.float() * scale).bfloat16()
    stored = scale.transpose(1, 2).contiguous() if tall else scale
    said = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
    return Made({"m.weight": codes, "m.weight_scale": stored}, said, decoded)
