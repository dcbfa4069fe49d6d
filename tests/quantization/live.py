"""A tiny Llama that is quantised, and an adapter on it, for tests of what is done with such checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

INPUT = torch.arange(20)[None]
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.bfloat16,
)
HOW = {"nf4": NF4, "int8": BitsAndBytesConfig(load_in_8bit=True)}
Quantised = Callable[[str], Path]


def adapter(base: Path, folder: Path, spread: float, **options: Any) -> Path:
    """LoRA with random factors, made by PEFT on the model in 16 bits."""
    torch.manual_seed(1)
    live = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base.parent / "plain"), LoraConfig(r=4, lora_alpha=16, **options)
    )
    for name, value in live.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=spread)
    live.save_pretrained(folder)
    return folder


def logits(live: torch.nn.Module) -> torch.Tensor:
    """What it computes, in float32."""
    with torch.no_grad():
        return live(INPUT).logits.float()


def judged(base: Path, lora: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """What the base computes in float32, decoded by transformers, and what it does with PEFT's adapter live."""
    live = AutoModelForCausalLM.from_pretrained(base, device_map="cpu").dequantize().float()
    before = logits(live)
    return before, logits(PeftModel.from_pretrained(live, lora))


def raw(folder: Path) -> dict[str, bytes]:
    """The bytes of each tensor."""
    tensors = {n: t for shard in folder.glob("*.safetensors") for n, t in load_file(shard).items()}
    return {name: t.reshape(-1).view(torch.uint8).numpy().tobytes() for name, t in tensors.items()}


def make_plain(folder: Path) -> None:
    """The model in 16 bits."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def make(how: str, plain: Path, folder: Path) -> None:
    """The model as transformers quantises and saves it; in FP8, which needs a GPU there, as it would."""
    if how == "fp8":
        return make_fp8(plain, folder)
    live = AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=HOW[how], device_map="cpu", dtype=torch.bfloat16
    )
    live.save_pretrained(folder)


def make_fp8(plain: Path, folder: Path, block: int = 32) -> None:
    """Blocks of that many rows and columns, in two shards with an index."""
    shutil.copytree(plain, folder)
    config = json.loads((folder / "config.json").read_text())
    said = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}, indent=1))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        codes, scales = fp8_blocks(tensors[name].float(), (block, block))
        tensors |= {name: codes, f"{name}_scale_inv": scales}
    shards = {n: f"model-0000{1 + ('layers.1' in n)}-of-00002.safetensors" for n in sorted(tensors)}
    for shard in set(shards.values()):
        save_file({n: tensors[n] for n in tensors if shards[n] == shard}, folder / shard, {"format": "pt"})
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def fp8_blocks(value: torch.Tensor, block: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of a matrix that the blocks divide, and their scales in float32."""
    tall, wide = block
    parts = value.unflatten(-1, (-1, wide)).unflatten(0, (-1, tall))
    scales = parts.abs().amax((1, 3)).clamp(min=1e-8) / 448
    codes = (parts / scales[:, None, :, None]).clamp(-448, 448).reshape(value.shape)
    return codes.to(torch.float8_e4m3fn), scales
