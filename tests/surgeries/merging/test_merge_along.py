"""An adapter's file that holds a whole state dict, the base's weights too. The judge is what PEFT loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, SurgeryError
from surgery_cli.app import app

Saved = Callable[..., Path]
NOTE = "weights of the base, such as"


def whole(folder: Path, *, seed: int = 0, keep: Callable[[str], bool] = lambda name: True, **options: Any) -> Path:
    """An adapter saved with its model's whole state dict, of the base of this seed, as trainers do that gather it
    themselves.
    """
    model = peft.get_peft_model(
        tiny_models.build("llama", seed=seed), peft.LoraConfig(r=4, task_type="CAUSAL_LM", **options)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    tensors = {n.replace(".default", ""): t.contiguous().clone() for n, t in model.state_dict().items()}
    save_file(
        {n: t for n, t in tensors.items() if keep(n)}, folder / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    return folder


def notes(base: Path, adapter: Path, **told: Any) -> list[str]:
    merged = surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told)
    return [note for note in merged.notes if NOTE in note]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], ["embed_tokens", "o_proj"]])
def test_its_copy_of_the_base_counts_as_peft_loads_it(
    seed: int, targets: list[str], saved: Saved, tmp_path: Path
) -> None:
    adapter = whole(tmp_path / "a", seed=seed, target_modules=targets)
    live = peft.PeftModel.from_pretrained(tf.LlamaForCausalLM.from_pretrained(saved("llama")).eval(), adapter).eval()
    done = CliRunner(env={"COLUMNS": "400"}).invoke(
        app, ["merge", str(saved("llama")), str(adapter), "-o", str(tmp_path / "m")]
    )
    assert done.exit_code == 0 and f"the file of {adapter} holds 30 {NOTE} lm_head.weight" in done.output, done.output
    model = tf.LlamaForCausalLM.from_pretrained(tmp_path / "m").eval()
    assert torch.allclose(tiny_models.output(model, "llama"), tiny_models.output(live, "llama"), rtol=1e-4, atol=1e-4)
    assert surgery.verify(tmp_path / "m", base=saved("llama"), adapter=adapter).ok


def test_those_that_are_there_are_counted(saved: Saved, tmp_path: Path) -> None:
    def held(name: str) -> bool:
        return "lora_" in name or "q_proj" in name or "layernorm" in name

    assert f"holds 9 {NOTE}" in notes(saved("llama"), whole(tmp_path / "a", target_modules=["q_proj"], keep=held))[0]
    assert f"holds 6 {NOTE}" in notes(saved("llama"), tmp_path / "a", except_=r".*\.self_attn\.q_proj")[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"modules_to_save": ["lm_head", "norm"]},
        {"bias": "all"},
        {"trainable_token_indices": [3]},
        {"target_modules": ["embed_tokens"]},
    ],
)
def test_what_peft_saves_itself_is_none(options: dict[str, Any], saved: Saved, tmp_path: Path) -> None:
    model = peft.get_peft_model(
        tiny_models.build("llama"), peft.LoraConfig(**{"target_modules": ["q_proj"], **options})
    )
    model.save_pretrained(tmp_path / "a", save_embedding_layers=not options)
    assert notes(saved("llama"), tmp_path / "a") == []


def test_what_was_trained_beside_it_is_none(saved: Saved, tmp_path: Path) -> None:
    peft.get_peft_model(tiny_models.build("llama"), peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(
        tmp_path / "a"
    )
    save_file({"model.norm.weight": torch.ones(48)}, tmp_path / "a/more.safetensors")
    adapter = surgery.open_adapter(tmp_path / "a", [tmp_path / "a/more.safetensors"])
    assert not any(NOTE in note for note in surgery.merge(surgery.open_checkpoint(saved("llama")), adapter).notes)


@pytest.mark.parametrize("part", ["layers.1.self_attn.q_proj.base_layer", "layers.0.mlp.up_proj", "norm"])
def test_another_shape_is_refused(part: str, saved: Saved, tmp_path: Path) -> None:
    file = whole(tmp_path / "a", target_modules=["q_proj"]) / "adapter_model.safetensors"
    tensors, name = load_file(file), f"base_model.model.model.{part}.weight"
    save_file({**tensors, name: tensors[name][:-2].contiguous()}, file)
    with pytest.raises(SurgeryError, match=r"the adapter's tensor is .*, the base's") as caught:
        notes(saved("llama"), tmp_path / "a")
    assert name in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_quantised_copies_are_refused(dtype: torch.dtype, saved: Saved, tmp_path: Path) -> None:
    file = whole(tmp_path / "a", target_modules=["q_proj"]) / "adapter_model.safetensors"
    save_file({n: t.to(dtype) if n.endswith("up_proj.weight") else t for n, t in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="that are quantised, and these are not") as caught:
        notes(saved("llama"), tmp_path / "a")
    assert "up_proj" in str(caught.value)
    json.dumps(notes(saved("llama"), tmp_path / "a", except_=r".*up_proj"))
