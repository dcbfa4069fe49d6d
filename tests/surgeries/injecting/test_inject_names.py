"""What targets are called: as files have them, as PEFT's defaults for mixed types are, as parts of fused modules. The
judge is PEFT on the live model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models  # noqa: F401  (quiet transformers)
import transformers as tf

import surgery
from surgery.errors import NothingMatched

WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
IMAGE = {**WIDE, "image_size": 32, "patch_size": 8}
OPT = {
    "model_type": "opt", "vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "word_embed_proj_dim": 32, "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "pad_token_id": 0,
}  # fmt: skip


def on(model: Any, targets: list[str] | None) -> set[str]:
    """The modules that PEFT puts LoRA on."""
    live = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    return {
        name.removeprefix("base_model.model.") for name, module in live.named_modules() if hasattr(module, "lora_A")
    }


@pytest.mark.parametrize("text", [OPT, T5], ids=["opt", "t5"])
def test_defaults_of_a_mixed_type_are_those_that_peft_finds(text: dict[str, Any], tmp_path: Path) -> None:
    """Not the parts of the vision model's qkv, which PEFT does not know."""
    config = tf.Blip2Config(
        vision_config=IMAGE,
        qformer_config={**WIDE, "encoder_hidden_size": 32, "vocab_size": 96},
        text_config=text,
        num_query_tokens=4,
    )
    model = tf.Blip2ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    assert set(surgery.inject(surgery.open_checkpoint(tmp_path)).lora) == on(model, None)


@pytest.mark.parametrize(("kind", "config", "files", "memory"), [
    ("ViTForImageClassification", IMAGE, ["query", "value"], ["q_proj", "v_proj"]),
    ("ViTForImageClassification", IMAGE, ["dense"], ["o_proj", "fc1", "fc2"]),
    ("BeitForImageClassification", IMAGE, ["key", "classifier"], ["k_proj"]),
    ("Dinov2Model", {**WIDE, "image_size": 32, "patch_size": 8}, ["query"], ["q_proj"]),
])  # fmt: skip
def test_names_of_the_files_are_taken_for_those_of_the_class(
    kind: str, config: dict[str, Any], files: list[str], memory: list[str], tmp_path: Path
) -> None:
    made = getattr(tf, kind)
    model = made(made.config_class(**config))
    model.save_pretrained(tmp_path)
    base = surgery.open_checkpoint(tmp_path)
    adapter = surgery.inject(base, files)
    kept = [name for name in files if name == "classifier"]
    assert set(adapter.lora) == on(model, [*memory, *kept]) == set(surgery.inject(base, [*memory, *kept]).lora)
    assert any(f"{files[0]}, as the files call it, is" in note for note in adapter.notes)


def test_parts_of_a_fused_module_are_named_where_a_target_is_none(tmp_path: Path) -> None:
    tf.MptForCausalLM(tf.MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=96)).save_pretrained(tmp_path)
    with pytest.raises(NothingMatched) as error:
        surgery.inject(surgery.open_checkpoint(tmp_path), ["q_proj", "v_proj"])
    assert "parts of fused modules are called Wq, Wk, Wv" in (error.value.help or "")
    assert surgery.inject(surgery.open_checkpoint(tmp_path), ["Wq", "Wv"]).lora
