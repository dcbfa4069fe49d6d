"""Quantised weights made by the packages that define them, and what these decode them to."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Made:
    """The stored tensors of a module `m`, what config.json says, and the weight that the reference decodes."""

    tensors: Tensors
    config: dict[str, object]
    weight: torch.Tensor
    codes: str = "m.weight"


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


def fp8_blocks(value: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of a matrix that the blocks divide, and their scales in float32."""
    tall, wide = block
    parts = value.unflatten(-1, (-1, wide)).unflatten(0, (-1, tall))
    scales = parts.abs().amax((1, 3)).clamp(min=1e-8) / 448
    codes = (parts / scales[:, None, :, None]).clamp(-448, 448).reshape(value.shape)
    return codes.to(torch.float8_e4m3fn), scales
