"""An adapter's file that is a live model's whole state: what was trained of a saved module counts, and not its
original.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError

Saved = Callable[..., Path]
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "both ends": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}),
    "a tied head": ("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "norms of all layers": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["input_layernorm"]}),
    "a head with a bias": ("bert", {"target_modules": ["query"], "modules_to_save": ["qa_outputs"]}),
}


def whole(base: Path, family: str, options: dict[str, Any], folder: Path) -> Any:
    """The live model; its adapter's folder has every tensor of it that is LoRA's or a saved module's."""
    model = peft.get_peft_model(
        type(tiny_models.build(family)).from_pretrained(base), peft.LoraConfig(r=2, **options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    parts = ("lora_", "modules_to_save", "original_module")
    state = {name: one.detach().clone() for name, one in model.state_dict().items() if any(p in name for p in parts)}
    save_file(state, folder / "adapter_model.safetensors", {"format": "pt"})
    return model


@pytest.mark.parametrize("foreign", [False, True], ids=["its base's", "another base's"])
@pytest.mark.parametrize("case", CASES)
def test_what_was_trained_counts(case: str, foreign: bool, saved: Saved, tmp_path: Path) -> None:
    family, options = CASES[case]
    live = whole(saved(family), family, options, tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    held = load_file(path)
    originals = [name for name in held if "original_module" in name]
    assert originals and not any(name.replace(".original_module", "") in held for name in originals)
    if foreign:
        save_file({n: one + 1 if n in originals else one for n, one in held.items()}, path, {"format": "pt"})
    merged = surgery.merge(surgery.open_checkpoint(saved(family)), surgery.open_adapter(tmp_path / "a"))
    assert set(originals) <= merged.dropped.keys()
    surgery.write(merged, tmp_path / "out")
    loaded = type(tiny_models.build(family)).from_pretrained(tmp_path / "out").eval()
    want, got = (tiny_models.output(model, family) for model in (live, loaded))
    assert (want - got).abs().max() < 1e-4 * want.abs().max()


def test_an_original_alone_is_not_what_was_trained(saved: Saved, tmp_path: Path) -> None:
    whole(saved("llama"), *CASES["a head"], tmp_path / "a")
    path = tmp_path / "a/adapter_model.safetensors"
    save_file(
        {name: one for name, one in load_file(path).items() if "modules_to_save" not in name}, path, {"format": "pt"}
    )
    with pytest.raises(AdapterError, match=r"no tensor of what adapter_config\.json says was trained"):
        surgery.merge(surgery.open_checkpoint(saved("llama")), surgery.open_adapter(tmp_path / "a"))
