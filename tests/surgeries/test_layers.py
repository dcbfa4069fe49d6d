"""Layers kept, left out, repeated, reordered: the result, loaded by its class, computes what the model does whose list
of modules is rearranged by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers as tf

import surgery
from surgery.errors import NothingMatched, NotSupported, PlanError, SurgeryError

_TEXT = {**tiny_models._LLAMA, "num_hidden_layers": 6}
_T5 = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 4, "num_heads": 4}
_NEXT = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "head_dim": 12,
}  # fmt: skip


def _llava() -> tf.PreTrainedModel:
    vision = tf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=tf.LlamaConfig(**_TEXT), image_token_id=96)
    )


MODELS: dict[str, tuple[str, Callable[[], Any]]] = {
    "llama": ("model.layers", lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, tie_word_embeddings=True))),
    "gpt2": ("transformer.h", lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(**tiny_models.TEXT, n_embd=36, n_layer=6, n_head=3, n_positions=64))),
    "gemma3": ("model.layers", lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **_TEXT, head_dim=12, sliding_window=4, layer_types=["sliding_attention", "full_attention"] * 3))),
    "qwen2": ("model.layers", lambda: tf.Qwen2ForCausalLM(
        tf.Qwen2Config(**_TEXT, use_sliding_window=True, sliding_window=4, max_window_layers=3))),
    "mixtral": ("model.layers", lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**_TEXT, num_local_experts=4))),
    "qwen3_next": ("model.layers", lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(**_TEXT, **_NEXT, layer_types=["linear_attention", "full_attention"] * 3))),
    "qwen3_moe": ("model.layers", lambda: tf.Qwen3MoeForCausalLM(
        tf.Qwen3MoeConfig(
            **_TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=12,
            mlp_only_layers=[1, 3]))),
    "llava": ("language_model.model.layers", _llava),
    "bert": ("bert.encoder.layer", lambda: tf.BertForMaskedLM(
        tf.BertConfig(
            vocab_size=97, hidden_size=36, intermediate_size=70, num_hidden_layers=6, num_attention_heads=3))),
}  # fmt: skip
ORDERS = {
    "keep": ("0-1,4-5", [0, 1, 4, 5]),
    "drop": ("2", [0, 1, 3, 4, 5]),
    "order": ("0-3,2,5-5,1", [0, 1, 2, 3, 2, 5, 1]),
}
LISTS = ("layer_types",)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def of(family: str) -> tuple[Path, Any]:
        if family not in made:
            torch.manual_seed(0)
            model = MODELS[family][1]().eval()
            path = tmp_path_factory.mktemp(family) / "base"
            model.save_pretrained(path)
            made[family] = path, model
        return made[family]

    return of


def by_hand(model: Any, order: list[int]) -> Any:
    """The model with its list of layers rearranged, and what reads that list by number along with it."""
    made = copy.deepcopy(model)
    name, layers = max(
        ((name, one) for name, one in made.named_modules() if isinstance(one, torch.nn.ModuleList) and len(one) == 6),
        key=lambda pair: -len(pair[0]),
    )
    owner = made.get_submodule(name.rpartition(".")[0])
    picked = torch.nn.ModuleList(copy.deepcopy(layers[old]) for old in order)
    for place, layer in enumerate(picked):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    setattr(owner, name.rpartition(".")[2], picked)
    config = owner.config
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[old] for old in order]
    config.num_hidden_layers = len(order)
    return made


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 27).reshape(2, 12)).logits


@pytest.mark.parametrize("how", ORDERS)
@pytest.mark.parametrize("family", MODELS)
def test_computes_what_the_rearranged_model_does(
    family: str, how: str, models: Callable[[str], tuple[Path, Any]], tmp_path: Path
) -> None:
    path, model = models(family)
    said, order = ORDERS[how]
    stack = {"stack": MODELS[family][0]} if family == "llava" else {}
    surgery.write(surgery.layers(surgery.open_checkpoint(path), **{how: said}, **stack), tmp_path / "out")
    loaded, info = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    wanted = logits(by_hand(model, order))
    assert torch.allclose(logits(loaded.eval()), wanted, atol=1e-6)
    assert not torch.allclose(logits(model), wanted, atol=1e-3)


def t5(path: Path) -> Path:
    torch.manual_seed(0)
    tf.T5ForConditionalGeneration(tf.T5Config(**_T5, num_decoder_layers=4)).save_pretrained(path)
    return path


def test_one_stack_of_two_is_named(tmp_path: Path) -> None:
    base = surgery.open_checkpoint(t5(tmp_path / "t5"))
    assert surgery.layers(base, drop="2", stack="decoder.block").config["num_decoder_layers"] == 3
    assert surgery.layers(base, drop="2", stack="encoder.block").config["num_layers"] == 3
    with pytest.raises(SurgeryError, match="more than one stack of layers"):
        surgery.layers(base, drop="2")
    with pytest.raises(NothingMatched, match=r"no layers are called decoder.blocks"):
        surgery.layers(base, drop="2", stack="decoder.blocks")


@pytest.mark.parametrize("said", [{"drop": "0"}, {"order": "1,0"}, {"order": "0,1,0"}])
def test_a_layer_that_is_of_its_own_kind_keeps_its_place(tmp_path: Path, said: dict[str, str]) -> None:
    base = surgery.open_checkpoint(t5(tmp_path / "t5"))
    with pytest.raises(NotSupported, match=r"no config.json makes T5ForConditionalGeneration compute these"):
        surgery.layers(base, **said, stack="decoder.block")


def test_what_follows_from_a_layers_number_is_not_moved(tmp_path: Path) -> None:
    config = tf.GPT2Config(n_embd=12, n_layer=4, n_head=2, vocab_size=33, scale_attn_by_inverse_layer_idx=True)
    tf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    base = surgery.open_checkpoint(tmp_path / "base")
    assert surgery.layers(base, keep="0-2").config["n_layer"] == 3
    with pytest.raises(NotSupported, match="computes by its own number"):
        surgery.layers(base, drop="1")


def test_a_scale_that_a_module_takes_from_its_number_is_not_moved(tmp_path: Path) -> None:
    tf.DiffLlamaForCausalLM(tf.DiffLlamaConfig(**_TEXT)).save_pretrained(tmp_path / "base")
    base = surgery.open_checkpoint(tmp_path / "base")
    assert surgery.layers(base, keep="0-2").config["num_hidden_layers"] == 3
    with pytest.raises(NotSupported, match="lambda_init"):
        surgery.layers(base, drop="1")


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({}, "which layers are meant is said in one way"),
        ({"keep": "0", "drop": "1"}, "which layers are meant is said in one way"),
        ({"keep": "0-9"}, "there is no layer 3, 4, 5, 6, 7, .* in model.layers"),
        ({"keep": "2-1"}, "`2-1` is no range of layers"),
        ({"keep": "-1"}, "`-1` is no range of layers"),
        ({"keep": "0,,1"}, "`` is no range of layers"),
        ({"keep": "0-99999999999"}, "is no range of layers"),
        ({"drop": "0-2"}, "no layer of model.layers would be left"),
    ],
)
def test_numbers_that_are_not_there(saved: Any, said: dict[str, str], what: str) -> None:
    with pytest.raises(SurgeryError, match=what):
        surgery.layers(surgery.open_checkpoint(saved("llama")), **said)


def test_more_layers_than_the_class_builds(saved: Any) -> None:
    base = surgery.open_checkpoint(saved("llama"))
    told = base.with_config({**base.config, "num_hidden_layers": 2})
    with pytest.raises(NotSupported, match=r"builds 2 layers of model.layers for this config, and 3 are stored"):
        surgery.layers(told, keep="0-1")


def test_a_config_without_a_class(saved: Any) -> None:
    base = surgery.open_checkpoint(saved("llama"))
    for named in ({}, {"architectures": ["OfNobody"]}):
        rest = {key: value for key, value in base.config.items() if key != "architectures"}
        with pytest.raises(PlanError, match=r"names no architecture|OfNobody"):
            surgery.layers(base.with_config({**rest, **named}), keep="0-1")


def test_left_out_layers_are_named_in_the_report(saved: Any, tmp_path: Path) -> None:
    report = surgery.write(surgery.layers(surgery.open_checkpoint(saved("llama")), drop="1"), tmp_path / "out")
    assert "3 layers of model.layers became 2: 0, 2" in report.notes
    step = surgery.open_checkpoint(tmp_path / "out").history[-1]
    assert step == {"surgery": "layers", "stack": "model.layers", "layers": [0, 2]}
