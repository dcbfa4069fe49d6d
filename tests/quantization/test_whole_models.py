"""Whole models that transformers makes, quantised: in 16 bits, all or in part, they load and compute the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made import Tensors, compress, said_of_compressed
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GptOssConfig, LlamaConfig

import surgery

INPUT = torch.arange(20)[None]
LLAMA = LlamaConfig(
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=96,
)
GPT_OSS = GptOssConfig(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=96,
    layer_types=["full_attention", "full_attention"],
)
INT, FLOAT = {"type": "int", "symmetric": True}, {"type": "float", "symmetric": True}
GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("pack-quantized", {**INT, "num_bits": 4, "strategy": "group", "group_size": 32}),
    "int4-zeros": (
        "pack-quantized",
        {"type": "int", "symmetric": False, "num_bits": 4, "strategy": "group", "group_size": 32},
    ),
    "int8": ("int-quantized", {**INT, "num_bits": 8, "strategy": "channel"}),
    "fp8": ("float-quantized", {**FLOAT, "num_bits": 8, "strategy": "channel"}),
    "fp8-blocks": ("float-quantized", {**FLOAT, "strategy": "block", "block_structure": [128, 128]}),
    "nvfp4": ("nvfp4-pack-quantized", {**FLOAT, "num_bits": 4, "strategy": "tensor_group", "group_size": 16}),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {**FLOAT, "num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": torch.uint8},
    ),
}
# Loaded with their weights in 16 bits, since transformers cannot hold them otherwise.
WIDE = ("int4-zeros",)


def compressed_llama(row: str, plain: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """Every linear weight but the head's, by compressed-tensors."""
    kind, args = GROUPS[row]
    made: Tensors = {}
    for name, value in plain.items():
        if name.endswith("_proj.weight"):
            parts, _ = compress(value, kind, args)
            made |= {f"{name.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        else:
            made[name] = value
    return made, {**said_of_compressed(kind, args), "ignore": ["lm_head"], "quantization_status": "compressed"}


def mxfp4_experts(plain: Tensors) -> tuple[Tensors, dict[str, Any]]:
    """The experts of gpt-oss in blocks: codes at random, and scales about as weights have them."""
    draw, made = torch.Generator().manual_seed(2), dict[str, torch.Tensor]()
    for name, value in plain.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = value.shape
            shape = (experts, rows, columns // 32)
            made[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), generator=draw).to(torch.uint8)
            made[f"{name}_scales"] = torch.randint(119, 123, shape, generator=draw).to(torch.uint8)
        else:
            made[name] = value
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    return made, {"quant_method": "mxfp4", "modules_to_not_convert": left}


Quantised = Callable[[str], Path]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Quantised:
    """checkpoint("int4") -> a tiny model whose weights are quantised so; "plain" lies beside it."""
    root = tmp_path_factory.mktemp("whole")

    def make(row: str) -> Path:
        kind = "gpt-oss" if row == "gpt-oss" else "llama"
        plain, folder = root / kind / "plain", root / row / "quantised"
        if not plain.exists():
            torch.manual_seed(0)
            live = AutoModelForCausalLM.from_config(GPT_OSS if row == "gpt-oss" else LLAMA, dtype=torch.bfloat16)
            live.save_pretrained(plain)
        if not folder.exists():
            tensors = load_file(plain / "model.safetensors")
            made, said = mxfp4_experts(tensors) if row == "gpt-oss" else compressed_llama(row, tensors)
            folder.mkdir(parents=True)
            save_file({n: t.contiguous() for n, t in made.items()}, folder / "model.safetensors", {"format": "pt"})
            config = json.loads((plain / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
        return folder

    return make


def loaded(folder: Path, wide: bool = False) -> torch.nn.Module:
    """As transformers loads it on a CPU, with nothing missing and nothing left over."""
    more = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if wide else {}
    live, info = AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.bfloat16, output_loading_info=True, **more
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return live


def logits(live: torch.nn.Module) -> torch.Tensor:
    """What it computes, in float32."""
    with torch.no_grad():
        return live(INPUT).logits.float()


@pytest.mark.parametrize("row", [*GROUPS, "gpt-oss"])
def test_in_16_bits_it_computes_the_same(row: str, checkpoint: Quantised, tmp_path: Path) -> None:
    base = checkpoint(row)
    surgery.write(surgery.dequantize(surgery.open_checkpoint(base)), tmp_path / "out")
    made = surgery.open_checkpoint(tmp_path / "out")
    assert "quantization_config" not in made.config
    kinds = {tensor.dtype.name for tensor in made.tensors.values()}
    assert kinds == {"BF16"} and len(made.tensors) == len(load_file(_plain(base) / "model.safetensors"))
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(base, row in WIDE)))


def _plain(base: Path) -> Path:
    return base.parent.parent / ("gpt-oss" if base.parent.name == "gpt-oss" else "llama") / "plain"


@pytest.mark.parametrize("row", [row for row in GROUPS if row not in WIDE])
def test_in_part_it_computes_the_same(row: str, checkpoint: Quantised, tmp_path: Path) -> None:
    base = checkpoint(row)
    made = surgery.dequantize(surgery.open_checkpoint(base), only=r".*layers\.1\..*")
    surgery.write(made, tmp_path / "out")
    stored, found = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    assert all(torch.equal(found[name], stored[name]) for name in stored if ".layers.0." in name)
    assert found["model.layers.1.mlp.up_proj.weight"].dtype == torch.bfloat16
    assert torch.equal(logits(loaded(tmp_path / "out")), logits(loaded(base)))


def test_experts_of_gpt_oss_are_all_quantised_or_none(checkpoint: Quantised) -> None:
    with pytest.raises(surgery.NotSupported, match="in all layers, or in none"):
        surgery.dequantize(surgery.open_checkpoint(checkpoint("gpt-oss")), only=r".*layers\.1\..*")


@pytest.mark.parametrize("row", [*GROUPS, "gpt-oss"])
def test_an_adapter_merged_computes_what_it_does_live(row: str, checkpoint: Quantised, tmp_path: Path) -> None:
    """Attention of the second layer in 16 bits, all else as it was, byte for byte."""
    base = checkpoint(row)
    torch.manual_seed(1)
    target = r".*layers\.1\.self_attn\.(q|o)_proj"
    live = get_peft_model(
        AutoModelForCausalLM.from_pretrained(_plain(base)), LoraConfig(r=4, lora_alpha=16, target_modules=target)
    )
    for name, value in live.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(value, std=0.1)
    live.save_pretrained(tmp_path / "lora")
    adapter = surgery.open_adapter(tmp_path / "lora")
    made = surgery.merge(surgery.open_checkpoint(base), adapter, dequantize=row in WIDE)
    surgery.write(made, tmp_path / "out")
    surgery.write(surgery.dequantize(surgery.open_checkpoint(base)), tmp_path / "wide")
    wide = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=torch.float32)
    before = logits(wide)
    after = logits(PeftModel.from_pretrained(wide, tmp_path / "lora"))
    found = logits(loaded(tmp_path / "out"))
    assert (found - after).norm() < 0.05 * (after - before).norm()
    if row not in WIDE:
        stored, now = load_file(base / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
        assert all(torch.equal(now[n], stored[n]) for n in stored if ".layers.1.self_attn." not in n)


def test_experts_of_gpt_oss_take_an_adapter(checkpoint: Quantised, tmp_path: Path) -> None:
    """All in 16 bits, since all are touched; or in one layer, for which there is no loader; or coded again."""
    base, wide = surgery.open_checkpoint(checkpoint("gpt-oss")), tmp_path / "wide"
    adapters = {}
    for layers in ("0", "01"):
        torch.manual_seed(1)
        names = [f"layers.{n}.mlp.experts.gate_up_proj" for n in layers]
        names += [f"layers.{n}.mlp.experts.down_proj" for n in layers]
        lora = LoraConfig(r=4, lora_alpha=16, target_modules=[], target_parameters=names)
        live = get_peft_model(AutoModelForCausalLM.from_pretrained(_plain(checkpoint("gpt-oss"))), lora)
        for name, value in live.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(value, std=0.1)
        live.save_pretrained(tmp_path / layers)
        adapters[layers] = surgery.open_adapter(tmp_path / layers)
    with pytest.raises(surgery.NotSupported, match="in all layers, or in none"):
        surgery.merge(base, adapters["0"])
    surgery.write(surgery.merge(base, adapters["01"]), tmp_path / "out")
    surgery.write(surgery.dequantize(base), wide)
    live = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    before = logits(live)
    after = logits(PeftModel.from_pretrained(live, tmp_path / "01"))
    assert (logits(loaded(tmp_path / "out")) - after).norm() < 0.05 * (after - before).norm()
    report = surgery.write(surgery.merge(base, adapters["01"], requantize=True, lossy=True), tmp_path / "again")
    assert report.recoded and report.recoded.tensors == 4
    assert (logits(loaded(tmp_path / "again")) - after).norm() < (before - after).norm()
