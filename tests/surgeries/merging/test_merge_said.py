"""What a merge says where it cannot go on: of formats, of missing heads and configs, of saves gone wrong; and live
models folded in.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NotPlaced, NotSupported
from surgery_cli.app import app

Saved = Callable[..., Path]
ONE = torch.ones(4, 4)


@pytest.fixture(scope="module")
def live(saved: Saved, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor], torch.Tensor]:
    """An adapter with a saved head, the live model's whole state dict, and what it computes."""
    torch.manual_seed(1)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "modules_to_save": ["lm_head"]}
    model = peft.get_peft_model(tf.LlamaForCausalLM.from_pretrained(saved("llama")).eval(), peft.LoraConfig(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.2)
    folder = tmp_path_factory.mktemp("live") / "a"
    model.save_pretrained(folder)
    return (
        folder,
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        tiny_models.output(model.eval(), "llama"),
    )


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_the_state_dict_of_a_live_model_is_folded_in(
    prefix: str, live: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(saved("llama"), base)
    tensors = {name.replace("base_model.model.", prefix, 1): tensor for name, tensor in live[1].items()}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    done = CliRunner().invoke(app, ["merge", str(base), "-o", str(tmp_path / "out")])
    assert (
        done.exit_code == 1
        and "is the state dict of a live PEFT model" in done.output
        and "adapter_config.json" in done.output
    )
    with pytest.raises(NotPlaced, match="the base is the state dict of a live PEFT model"):
        surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(live[0]))
    shutil.copy(live[0] / "adapter_config.json", base)
    done = CliRunner().invoke(app, ["merge", str(base), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0 and "state dict of a live PEFT model" in done.output, done.output
    model, info = tf.LlamaForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert (tiny_models.output(model.eval(), "llama") - live[2]).abs().max() <= 1e-5 * live[2].abs().max()


def copied(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name", ["base_model.model.lm_head.weight", "base_model.model.model.norm.weight", "base_model.model.score.weight"]
)
def test_what_was_saved_ungathered_is_told_as_such(
    name: str, live: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    adapter = copied(live[0], tmp_path / "a", lambda tensors: tensors.update({name: torch.ones(0)}))
    with pytest.raises(NotSupported, match="has no element") as caught:
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(adapter))
    assert "ZeRO-3 or FSDP" in str(caught.value) and name in str(caught.value)


def test_a_missing_config_is_told(
    live: tuple[Path, dict[str, torch.Tensor], torch.Tensor], saved: Saved, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    tensors = load_file(saved("llama") / "model.safetensors")
    fused = {name.replace("q_proj", "qkv_proj"): tensor for name, tensor in tensors.items()}
    save_file(fused, tmp_path / "base/model.safetensors")
    for config, said in (
        (None, "the base has no config.json"),
        ({"hidden_size": 48}, "the base has no model_type in its config.json"),
    ):
        if config:
            (tmp_path / "base/config.json").write_text(json.dumps(config))
        with pytest.raises(NotPlaced, match=said):
            surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(live[0]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_head_on_a_body_is_told(family: str, saved: Saved, tmp_path: Path) -> None:
    """LoRA on the head of a causal model, and a base saved from the bare class."""
    body = {"llama": tf.LlamaModel, "gpt2": tf.GPT2Model}[family]
    body.from_pretrained(saved(family)).save_pretrained(tmp_path / "base")
    (tmp_path / "a").mkdir()
    rows, width = load_file(saved(family) / "model.safetensors").get("lm_head.weight", torch.ones(97, 36)).shape
    name = "base_model.model.lm_head.lora_{}.weight"
    save_file(
        {name.format("A"): torch.ones(4, width), name.format("B"): torch.ones(rows, 4)},
        tmp_path / "a/adapter_model.safetensors",
    )
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    with pytest.raises(NotPlaced, match="a body without its head") as caught:
        surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"))
    assert {"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[family] in str(
        caught.value
    ) and "--except 'lm_head'" in str(caught.value)


def test_weights_without_their_config_are_asked_for_alpha(
    live: tuple[Path, dict[str, torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    shutil.copy(live[0] / "adapter_model.safetensors", tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        with pytest.raises(AdapterError, match="does not say alpha") as caught:
            surgery.open_adapter(path)
        assert "--alpha" in str(caught.value)
    with pytest.raises(AdapterError):
        surgery.own_adapter(surgery.open_checkpoint(tmp_path / "adapter_model.safetensors"))
