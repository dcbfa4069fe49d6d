"""Layers that LN tuning holds whole: whatever it is put on, and a head that is tied."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file

import surgery

from .cases import Case, fresh, live, output, trained
from .test_methods import base as base
from .test_methods import computed, merged

pytestmark = pytest.mark.usefixtures("one_thread")

TARGETS = {
    "norms": ["input_layernorm", "norm"],
    "norms and linear": ["post_attention_layernorm", "q_proj"],
    "head": ["input_layernorm", "lm_head"],
    "embedding": ["embed_tokens"],
}


@pytest.mark.parametrize("family", ["linear", "tied"])
@pytest.mark.parametrize("on", TARGETS)
def test_what_is_held_whole_takes_the_place_of_one_alone(
    family: str, on: str, base: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT saves the base's own head beside the trained copy; of a tied one, the embedding stays."""
    case = Case(family, lambda: peft.LNTuningConfig(target_modules=TARGETS[on]))
    folder = trained(case, base(family), tmp_path / "a")
    held = load_file(folder / "adapter_model.safetensors")
    assert any("lm_head.base_layer" in name for name in held) == (on == "head")
    before, wanted = output(family, fresh(family)), output(family, live(case, base(family), [folder]))
    found = computed(case, merged(base(family), folder, tmp_path / "out"))
    error, effect = (found - wanted).abs().max().item(), (wanted - before).abs().max().item()
    assert error <= 1e-5 * wanted.abs().max().item() and effect > 1000 * error
    opened = surgery.open_checkpoint(base(family))
    made = surgery.merge(opened, surgery.open_adapter(folder))
    untouched = "model.embed_tokens.weight" if on == "head" else "model.layers.0.self_attn.v_proj.weight"
    assert torch.equal(made.load(untouched), opened.load(untouched))
    assert surgery.verify(tmp_path / "out", base=base(family), adapter=folder).ok
