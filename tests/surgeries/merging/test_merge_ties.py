"""Tied tensors under other names, and inside modules that are saved whole: merged, they compute what the live
adapted model does.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import NotSupported

SMALL = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
ROBERTA = {**SMALL, "max_position_embeddings": 64, "pad_token_id": 1}
T5 = {
    "vocab_size": 97,
    "d_model": 32,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "d_kv": 8,
    "tie_word_embeddings": True,
}
DISTILBERT = {"vocab_size": 97, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 64}
MODELS: dict[str, Callable[[], tf.PreTrainedModel]] = {
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**SMALL, max_position_embeddings=64)),
    "roberta": lambda: tf.XLMRobertaForMaskedLM(tf.XLMRobertaConfig(**ROBERTA)),
    "distilbert": lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(**DISTILBERT, tie_word_embeddings=True)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5, decoder_start_token_id=0)),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a saved head that holds the tied decoder": ("bert", {"target_modules": ["query"], "modules_to_save": ["cls"]}),
    "a part of it": ("bert", {"target_modules": ["query"], "modules_to_save": ["predictions"]}),
    "lm_head with a decoder": ("roberta", {"target_modules": ["query"], "modules_to_save": ["lm_head"]}),
    "tying asked, not done by PEFT": (
        "distilbert",
        {"target_modules": ["q_lin", "word_embeddings"], "ensure_weight_tying": True},
    ),
    "shared": ("t5", {"target_modules": ["q", "shared"], "ensure_weight_tying": True}),
    "wte": ("gpt2", {"target_modules": ["c_attn", "wte"], "ensure_weight_tying": True}),
    "saved, tying asked": (
        "gpt2",
        {"target_modules": ["c_attn"], "modules_to_save": ["wte"], "ensure_weight_tying": True},
    ),
}


def output(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
    extra = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=ids, **extra).logits


@pytest.mark.parametrize("case", CASES)
def test_tied_tensors_become_what_the_live_model_has(case: str, tmp_path: Path) -> None:
    family, options = CASES[case]
    torch.manual_seed(0)
    MODELS[family]().save_pretrained(tmp_path / "base")
    kind = type(MODELS[family]())
    model = get_peft_model(kind.from_pretrained(tmp_path / "base"), LoraConfig(r=4, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    plain = output(kind.from_pretrained(tmp_path / "base"))
    live = output(PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"))
    surgery.write(
        surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter")),
        tmp_path / "merged",
    )
    merged = output(kind.from_pretrained(tmp_path / "merged"))
    assert (live - plain).abs().max() > 1000 * (live - merged).abs().max()
    assert (live - merged).abs().max() < 1e-4 * live.abs().max()


def test_an_embedding_by_its_shape_where_the_rule_is_not_known(tmp_path: Path) -> None:
    """Mamba ties `backbone.embeddings`, and no rule says how somebody's own class of it keeps them apart."""
    base = tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, tie_word_embeddings=True)
    )
    base.save_pretrained(tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["TheirMambaLM"]}))
    get_peft_model(base, LoraConfig(target_modules=["embeddings"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(NotSupported, match="how its class keeps tied tensors apart is not known"):
        surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter"))


def test_an_adapter_config_beside_the_base_stays_behind(tmp_path: Path) -> None:
    """Base and adapter in one folder: transformers would look for that adapter on top of the merged weights."""
    base = MODELS["gpt2"]()
    base.save_pretrained(tmp_path / "base")
    get_peft_model(base, LoraConfig(target_modules=["c_attn"])).save_pretrained(tmp_path / "adapter")
    (tmp_path / "base" / "adapter_config.json").write_bytes((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter"))
    assert "adapter_config.json" not in merged.files
    assert "left out, since nothing is left to adapt: adapter_config.json" in merged.notes


BODIES: dict[str, tuple[Callable[[], tf.PreTrainedModel], str, str]] = {
    "bert": (lambda: tf.BertModel(tf.BertConfig(**SMALL, max_position_embeddings=64)), "query", "word_embeddings"),
    "roberta": (lambda: tf.XLMRobertaModel(tf.XLMRobertaConfig(**ROBERTA)), "query", "word_embeddings"),
    "distilbert": (lambda: tf.DistilBertModel(tf.DistilBertConfig(**DISTILBERT)), "q_lin", "word_embeddings"),
    "mpnet": (lambda: tf.MPNetModel(tf.MPNetConfig(**ROBERTA)), "q", "word_embeddings"),
    "gpt2": (lambda: tf.GPT2Model(tf.GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "c_attn", "wte"),
    "qwen2": (lambda: tf.Qwen2Model(tf.Qwen2Config(**SMALL, num_key_value_heads=2, tie_word_embeddings=True)),
    "q_proj", "embed_tokens"),
    "gemma3": (lambda: tf.Gemma3TextModel(tf.Gemma3TextConfig(**SMALL, num_key_value_heads=2, head_dim=8)), "q_proj",
    "embed_tokens"),
    "opt": (
        lambda: tf.OPTModel(tf.OPTConfig(vocab_size=97, hidden_size=32, word_embed_proj_dim=32, ffn_dim=48,
        num_hidden_layers=2,
                                         num_attention_heads=4, max_position_embeddings=64)),
        "q_proj", "embed_tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", BODIES)
def test_the_embedding_of_a_body_is_tied_to_nothing(family: str, tmp_path: Path) -> None:
    """LoRA on it, tokens trained in it, or all of it saved: there is no head to be kept apart from."""
    build, inner, embedding = BODIES[family]
    torch.manual_seed(0)
    build().save_pretrained(tmp_path / "base")
    kind = type(build())

    def hidden(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(
                input_ids=torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(0))
            ).last_hidden_state

    plain = hidden(kind.from_pretrained(tmp_path / "base"))
    aimed = {"target_modules": [inner]}
    for number, options in enumerate(
        (
            {"target_modules": [inner, embedding]},
            {**aimed, "trainable_token_indices": {embedding: [3, 5, 8]}},
            {**aimed, "modules_to_save": [embedding]},
        )
    ):
        adapter, merged = tmp_path / f"adapter{number}", tmp_path / f"merged{number}"
        model = get_peft_model(kind.from_pretrained(tmp_path / "base"), LoraConfig(r=4, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.save_pretrained(adapter)
        live = hidden(PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), adapter))
        surgery.write(surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(adapter)), merged)
        assert (live - plain).abs().max() > 1e-2
        assert (live - hidden(kind.from_pretrained(merged))).abs().max() < 1e-4 * live.abs().max()


def test_peft_s_merge_of_lora_on_a_tied_embedding_is_told_as_what_it_is(tmp_path: Path) -> None:
    MODELS["gpt2"]().save_pretrained(tmp_path / "base")
    model = get_peft_model(
        tf.GPT2LMHeadModel.from_pretrained(tmp_path / "base"), LoraConfig(target_modules=["c_attn", "wte"])
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path / "adapter")
    model.merge_and_unload().save_pretrained(tmp_path / "merged")
    report = surgery.verify(tmp_path / "merged", base=tmp_path / "base", adapter=tmp_path / "adapter")
    said = [str(one) for one in report.proof.wrong]
    assert len(said) == 1 and said[0].startswith("lm_head.weight: missing (tied to transformer.wte.weight in the base")


@pytest.mark.parametrize("modules", [["wte"], ["c_attn", "lm_head"]])
def test_gpt2_under_bare_names(modules: list[str], tmp_path: Path) -> None:
    """The files lack `transformer.`, as the first GPT-2s do: an adapter on one end of the tie leaves the other as it
    is.
    """
    torch.manual_seed(0)
    MODELS["gpt2"]().save_pretrained(tmp_path / "base")
    path = tmp_path / "base" / "model.safetensors"
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()},
        path,
        metadata={"format": "pt"},
    )
    kind = tf.GPT2LMHeadModel
    model = get_peft_model(
        kind.from_pretrained(tmp_path / "base"), LoraConfig(r=4, target_modules=modules, init_lora_weights=False)
    )
    model.save_pretrained(tmp_path / "adapter")
    plain = output(kind.from_pretrained(tmp_path / "base"))
    live = output(PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter"))
    base, adapter = surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter")
    surgery.write(surgery.merge(base, adapter, names=[(r"^transformer\.", "")]), tmp_path / "merged")
    assert (live - plain).abs().max() > 0.01
    assert (live - output(kind.from_pretrained(tmp_path / "merged"))).abs().max() < 1e-4 * live.abs().max()
