"""LoRA on modules whose weight the class reads directly: the live model computes without it, and so does the merged
one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from conftest import alike
from safetensors.torch import load_file

import surgery
from surgery.models.unapplied import CONVOLVED, UNAPPLIED

SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2}
_ATTENTION = {
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
}
_EXPERTS = {"expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2, "use_mamba_kernels": False}
MODELS: dict[str, Callable[[], Any]] = {
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(**SIZES, state_size=4)),
    "falcon_mamba": lambda: tf.FalconMambaForCausalLM(tf.FalconMambaConfig(**SIZES, state_size=4)),
    "jamba": lambda: tf.JambaForCausalLM(
        tf.JambaConfig(**SIZES, **_ATTENTION, **_EXPERTS, mamba_d_state=4, mamba_dt_rank=4)
    ),
    "wavlm": lambda: tf.WavLMForCTC(
        tf.WavLMConfig(
            **SIZES, intermediate_size=40, num_attention_heads=4, conv_dim=(16, 16), conv_kernel=(4, 4),
            conv_stride=(2, 2), num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        )
    ),
}  # fmt: skip
BESIDE = {"wavlm": ("intermediate_dense",)}  # what LoRA is applied on; of the others:
STATES = ("in_proj", "x_proj")


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        if model.main_input_name == "input_values":
            return model(torch.sin(torch.arange(400.0))[None]).logits
        return model(torch.arange(2, 16).reshape(2, 7), use_cache=False).logits


def built(family: str, folder: Path) -> Any:
    """A model of random weights, saved."""
    torch.manual_seed(0)
    model = MODELS[family]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def adapted(model: Any, folder: Path, **options: Any) -> torch.Tensor:
    """An adapter of random factors, saved; what the live model computes with it."""
    live = peft.get_peft_model(model, peft.LoraConfig(r=4, **options)).eval()
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    live.save_pretrained(folder)
    return logits(live.base_model.model)


def merged(folder: Path) -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(folder / "base"), surgery.open_adapter(folder / "a"))


def test_every_row_is_tried() -> None:
    assert MODELS.keys() == UNAPPLIED.keys()


@pytest.mark.parametrize("family", MODELS)
def test_the_live_model_computes_without_it(family: str, tmp_path: Path) -> None:
    """Alone it changes nothing; beside LoRA on other modules these are merged, and it is dropped by name, with a
    note.
    """
    model = built(family, tmp_path / "base")
    before, targets = logits(model), list(UNAPPLIED[family])
    assert alike(adapted(model, tmp_path / "alone", target_modules=targets), before)
    surgery.write(
        surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "alone")),
        tmp_path / "alone-merged",
    )
    for name, tensor in load_file(tmp_path / "base/model.safetensors").items():
        assert torch.equal(tensor, load_file(tmp_path / "alone-merged/model.safetensors")[name])
    live = adapted(
        type(model).from_pretrained(tmp_path / "base").eval(),
        tmp_path / "a",
        target_modules=[*targets, *BESIDE.get(family, STATES)],
    )
    made = merged(tmp_path)
    assert {name for name in made.dropped if ".lora_" in name} == {
        name
        for name in load_file(tmp_path / "a/adapter_model.safetensors")
        if any(f".{target}.lora_" in name for target in targets)
    }
    said = ", ".join(sorted(targets))
    assert any(f"since {family} reads the weight of {said} directly" in note for note in made.notes)
    surgery.write(made, tmp_path / "out")
    again = logits(type(model).from_pretrained(tmp_path / "out").eval())
    assert (again - live).abs().max() < 1e-5 * live.abs().max() < 1e-2 * (live - before).abs().max()
    assert surgery.verify(tmp_path / "out", base=tmp_path / "base", adapter=tmp_path / "a").ok


def test_every_type_whose_convolution_is_not_called_is_known() -> None:
    """Each class that hands its weight to a kernel, and never calls it."""
    found = set()
    for source in (Path(tf.__file__).parent / "models").glob("*/modeling_*.py"):
        text = source.read_text()
        if "self.conv1d.weight" in text and "self.conv1d(" not in text:
            found |= set(
                re.findall(r'model_type = "(\w+)"', "".join(f.read_text() for f in source.parent.glob("conf*.py")))
            )
    assert {kind for kind in found if not kind.endswith(("_vision", "_audio"))} == CONVOLVED


@pytest.mark.parametrize(
    "config",
    [
        peft.LoHaConfig(r=2, target_modules=["conv1d", "in_proj"], init_weights=False),
        peft.LoKrConfig(r=2, target_modules=["conv1d", "in_proj"], init_weights=False),
    ],
    ids=lambda config: str(config.peft_type.value),
)
@pytest.mark.parametrize("family", ["mamba", "falcon_mamba", "jamba"])
def test_no_kind_is_applied_on_a_convolution_that_is_not_called(
    family: str, config: peft.PeftConfig, tmp_path: Path
) -> None:
    model = built(family, tmp_path / "base")
    live = peft.get_peft_model(model, config)
    made = torch.Generator().manual_seed(1)
    for parameter in live.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=made))
    live.save_pretrained(tmp_path / "a")
    wanted, result = logits(live.base_model.model), merged(tmp_path)
    assert any("conv1d" in name for name in result.dropped) and not any("in_proj" in name for name in result.dropped)
    assert any("conv1d directly" in note and "transformers 4" in note for note in result.notes)
    surgery.write(result, tmp_path / "out")
    base = logits(type(model).from_pretrained(tmp_path / "base").eval())
    again = logits(type(model).from_pretrained(tmp_path / "out").eval())
    assert (again - wanted).abs().max() <= 1e-5 * wanted.abs().max() < 1e-2 * (wanted - base).abs().max()


def test_on_the_parameter_it_is_not_applied_either(tmp_path: Path) -> None:
    """PEFT puts LoRA on a parameter in its place while its module is called, and the module is not."""
    model = built("mamba", tmp_path / "base")
    before = logits(model)
    assert (
        torch.equal(
            adapted(model, tmp_path / "a", target_modules=["in_proj"], target_parameters=["dt_proj.weight"]), before
        )
        is False
    )
    made = merged(tmp_path)
    live = logits(model)
    assert any(".dt_proj." in name for name in made.dropped) and not any(".in_proj." in name for name in made.dropped)
    surgery.write(made, tmp_path / "out")
    again = logits(tf.MambaForCausalLM.from_pretrained(tmp_path / "out").eval())
    assert (again - live).abs().max() < 1e-5 * live.abs().max() < 1e-2 * (live - before).abs().max()
