"""LoRA in GGUF, laid out as llama.cpp's converter lays it out, by the gguf package; judged by PEFT's live model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny_models
import torch
from foreign import check_computes, merged_with, weights_in
from gguf_files import laced, write
from safetensors.torch import load_file

import surgery
from surgery.errors import AdapterError, FormatError, NotACheckpoint, NotSupported

Saved = Callable[..., Path]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "embed_tokens", "lm_head"]
LEAVES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
}
HEADS = {"attn_q": 4, "attn_k": 2}
SAID: Mapping[str, Any] = {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 6.0}


def trained(targets: list[str], folder: Path) -> torch.Tensor:
    torch.manual_seed(2)
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=targets)
    model = peft.get_peft_model(tiny_models.build("llama"), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return tiny_models.output(model, "llama")


def as_gguf(folder: Path, path: Path, said: Mapping[str, Any] = SAID, arch: str = "llama") -> Path:
    """As convert_lora_to_gguf.py: rows of q and k laced, an embedding's A transposed."""
    made = dict[str, np.ndarray]()
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        parts = name.removeprefix("base_model.model.").split(".")
        array, part = tensor.numpy(), "lora_a" if "lora_A" in name or "embedding_A" in name else "lora_b"
        if "embed_tokens" in name:
            made[f"token_embd.weight.{part}"] = np.ascontiguousarray(array.T) if part == "lora_a" else array
        elif "lm_head" in name:
            made[f"output.weight.{part}"] = array
        else:
            leaf = LEAVES[".".join(parts[3:5])]
            array = laced(array, HEADS[leaf]) if part == "lora_b" and leaf in HEADS else array
            made[f"blk.{parts[2]}.{leaf}.weight.{part}"] = np.ascontiguousarray(array)
    return write(path, arch, said, made)


@pytest.mark.parametrize("way", ["file", "folder"])
def test_it_computes_what_peft_does(way: str, saved: Saved, tmp_path: Path) -> None:
    live = trained(TARGETS, tmp_path / "peft")
    (tmp_path / "g").mkdir()
    file = as_gguf(tmp_path / "peft", tmp_path / "g/lora.gguf")
    adapter = file if way == "file" else tmp_path / "g"
    out = merged_with(saved("llama"), adapter, tmp_path / "out")
    check_computes("llama", saved("llama"), out, live)
    assert surgery.verify(out, base=saved("llama"), adapter=adapter).ok


def test_it_is_told_and_converted(saved: Saved, tmp_path: Path) -> None:
    trained(TARGETS[:-2], tmp_path / "peft")
    file = as_gguf(tmp_path / "peft", tmp_path / "lora.gguf")
    found = surgery.inspect(file)
    assert found.adapter["format"] == "llama.cpp" and "general.type is adapter" in found.adapter["why"]
    made = surgery.convert_adapter(surgery.open_adapter(file), base=surgery.open_checkpoint(saved("llama")))
    surgery.write(made, tmp_path / "back")
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "back"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_alpha_is_asked_for_where_the_file_says_none(saved: Saved, tmp_path: Path) -> None:
    trained(["v_proj"], tmp_path / "peft")
    silent = {key: value for key, value in SAID.items() if "alpha" not in key}
    file = as_gguf(tmp_path / "peft", tmp_path / "lora.gguf", silent)
    with pytest.raises(AdapterError, match="does not say alpha"):
        surgery.open_adapter(file)
    one = weights_in(merged_with(saved("llama"), file, tmp_path / "one", alpha=6))
    two = weights_in(merged_with(saved("llama"), tmp_path / "peft", tmp_path / "two"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    said = as_gguf(tmp_path / "peft", tmp_path / "said.gguf")
    with pytest.raises(AdapterError, match=r"the file says adapter.lora.alpha = 6.0"):
        surgery.open_adapter(said, alpha=3)


ODD: dict[str, tuple[Mapping[str, Any], str, type[Exception], str]] = {
    "control vectors": ({**SAID, "adapter.type": "control"}, "llama", NotSupported, "of type control"),
    "aLoRA": ({**SAID, "adapter.alora.invocation_tokens": [1, 2]}, "llama", NotSupported, "some tokens only"),
    "architecture": (SAID, "mamba", NotSupported, "what tensors of `mamba` are called"),
    "a base": (SAID, "gpt2", NotSupported, "LoRA on this tensor is not read"),
    "alpha": ({**SAID, "adapter.lora.alpha": float("nan")}, "llama", AdapterError, "adapter.lora.alpha = nan"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_is_not_read_is_refused_by_name(case: str, tmp_path: Path) -> None:
    said, arch, kind, what = ODD[case]
    trained(["v_proj", "gate_proj"], tmp_path / "peft")
    with pytest.raises(kind, match=what):
        surgery.open_adapter(as_gguf(tmp_path / "peft", tmp_path / "lora.gguf", said, arch))


def test_another_base_is_refused(saved: Saved, tmp_path: Path) -> None:
    trained(["q_proj"], tmp_path / "peft")
    file = as_gguf(tmp_path / "peft", tmp_path / "lora.gguf")
    with pytest.raises(AdapterError, match="for `llama`, and the base is of model type `gpt2`"):
        merged_with(saved("gpt2"), file, tmp_path / "out")


def test_codes_strangers_and_models_are_no_factors(saved: Saved, tmp_path: Path) -> None:
    import gguf

    codes = gguf.quants.quantize(np.ones((32, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    kind = gguf.GGMLQuantizationType.Q8_0
    pair = {f"blk.0.attn_v.weight.lora_{x}": (codes, kind) for x in "ab"}
    with pytest.raises(AdapterError, match="adapter tensors of U8 are not supported"):
        surgery.open_adapter(write(tmp_path / "a.gguf", "llama", SAID, pair))
    odd = {"blk.0.attn_v.weight": np.ones((2, 2), np.float32)}
    with pytest.raises(FormatError, match=r"none of llama.cpp's"):
        surgery.open_adapter(write(tmp_path / "b.gguf", "llama", SAID, odd))
    with pytest.raises(NotACheckpoint):
        surgery.open_adapter(write(tmp_path / "c.gguf", "llama", {}, odd))
    (tmp_path / "p").mkdir()
    trained(["v_proj"], tmp_path / "p")
    as_gguf(tmp_path / "p", tmp_path / "p/lora.gguf")
    assert surgery.open_adapter(tmp_path / "p").config["target_modules"] == ["v_proj"]  # PEFT's own folder stays that
