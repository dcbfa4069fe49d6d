"""Tied tensors stored once, and apart: what the class loads of the result computes what the model does, and has them
tied or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from conftest import hashes
from safetensors import safe_open
from safetensors.torch import load_file, save_file, save_model
from tiny_models import _LLAMA, TEXT

import surgery
from surgery.errors import NothingMatched, NotSupported, PlanError
from surgery.models.families import NEVER, TIES, tied, ties, untied

_TEXT = {**_LLAMA, "num_hidden_layers": 1}


def _llava(**flags: bool) -> Any:
    vision = tf.CLIPVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16
    )
    text = tf.LlamaConfig(**_TEXT, tie_word_embeddings=flags["tie_word_embeddings"])
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(vision_config=vision, text_config=text, image_token_id=96, **flags)
    )


MODELS: dict[str, Callable[..., Any]] = {
    "llama": lambda **flags: tf.LlamaForCausalLM(tf.LlamaConfig(**_TEXT, **flags)),
    "gpt2": lambda **flags: tf.GPT2LMHeadModel(
        tf.GPT2Config(**TEXT, n_embd=36, n_layer=1, n_head=3, n_positions=64, **flags)),
    "gemma2": lambda **flags: tf.Gemma2ForCausalLM(tf.Gemma2Config(**_TEXT, head_dim=12, **flags)),
    "gpt_neox": lambda **flags: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(**TEXT, hidden_size=36, intermediate_size=70, num_hidden_layers=1, num_attention_heads=3,
                         **flags)),
    "bloom": lambda **flags: tf.BloomForCausalLM(tf.BloomConfig(**TEXT, hidden_size=36, n_layer=1, n_head=3, **flags)),
    "opt": lambda **flags: tf.OPTForCausalLM(
        tf.OPTConfig(**TEXT, hidden_size=36, num_hidden_layers=1, num_attention_heads=3, ffn_dim=40,
                     word_embed_proj_dim=36, **flags)),
    "llava": _llava,
}  # fmt: skip


def made(family: str, folder: Path, *, tied: bool, equal: bool = True) -> Any:
    """The model, saved in the folder: tied, or apart, with equal tensors or not."""
    torch.manual_seed(0)
    model = MODELS[family](tie_word_embeddings=tied).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if not tied and equal:
            model.get_output_embeddings().weight.copy_(model.get_input_embeddings().weight)
    model.save_pretrained(folder)
    return model


def loaded(folder: Path) -> Any:
    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(tf, kind).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"], info
    assert not info["unexpected_keys"], info
    return model.eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 20)[None]).logits


def one(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def written(checkpoint: surgery.Checkpoint, folder: Path) -> Path:
    surgery.write(checkpoint, folder)
    return folder


@pytest.mark.parametrize("family", MODELS)
def test_untied_it_computes_the_same_and_its_head_is_its_own(family: str, tmp_path: Path) -> None:
    model = made(family, tmp_path / "base", tied=True)
    out = written(surgery.untie(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "out")
    got = loaded(out)
    assert one(model)
    assert not one(got)
    assert not got.all_tied_weights_keys
    assert torch.equal(logits(got), logits(model))
    with torch.no_grad():  # and a head that is trained apart is what the class loads
        got.get_output_embeddings().weight.mul_(2)
    got.save_pretrained(tmp_path / "trained")
    assert torch.equal(logits(loaded(tmp_path / "trained")), logits(got))


@pytest.mark.parametrize("family", MODELS)
def test_tied_it_is_what_its_class_saves(family: str, tmp_path: Path) -> None:
    model = made(family, tmp_path / "base", tied=False)
    again = made(family, tmp_path / "wanted", tied=True)
    with torch.no_grad():
        for parameter, value in zip(again.parameters(), model.parameters(), strict=False):
            assert parameter.shape == value.shape
    again.load_state_dict({k: v for k, v in model.state_dict().items() if k in again.state_dict()})
    again.save_pretrained(tmp_path / "wanted")
    out = written(surgery.tie(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "out")
    got = loaded(out)
    assert one(got)
    assert not one(model)
    assert torch.equal(logits(got), logits(model))
    assert hashes(out)["model.safetensors"] == hashes(tmp_path / "wanted")["model.safetensors"]


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_tying_undoes_untying(family: str, tmp_path: Path) -> None:
    made(family, tmp_path / "base", tied=True)
    apart = surgery.untie(surgery.open_checkpoint(tmp_path / "base"))
    back = written(surgery.tie(apart), tmp_path / "back")
    assert hashes(back)["model.safetensors"] == hashes(tmp_path / "base")["model.safetensors"]
    assert one(loaded(back))


def test_what_differs_is_not_tied_and_the_first_difference_is_named(tmp_path: Path) -> None:
    made("llama", tmp_path / "base", tied=False)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    head = tensors["lm_head.weight"].clone()
    head[70, 11] = -head[70, 11]
    head[70, 12] = 0
    save_file({**tensors, "lm_head.weight": head}, path, metadata={"format": "pt"})
    with pytest.raises(PlanError) as caught:
        surgery.tie(surgery.open_checkpoint(tmp_path / "base"))
    assert caught.value.what == "what would be tied differs"
    value = float(tensors["lm_head.weight"][70, 11])
    assert caught.value.where[1].startswith(f"model.embed_tokens.weight[70, 11] is {value:.9g}, in bytes ")
    assert caught.value.where[2].startswith(f"lm_head.weight[70, 11] is {-value:.9g}, in bytes ")


def test_two_dtypes_or_shapes_are_not_tied(tmp_path: Path) -> None:
    made("llama", tmp_path / "base", tied=False)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["lm_head.weight"].to(torch.bfloat16)}, path)
    with pytest.raises(PlanError, match="two shapes or dtypes"):
        surgery.tie(surgery.open_checkpoint(tmp_path / "base"))


def test_a_zero_with_a_sign_is_another_zero(tmp_path: Path) -> None:
    made("llama", tmp_path / "base", tied=False)
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0], tensors["model.embed_tokens.weight"][0, 0] = 0.0, -0.0
    save_file(tensors, path)
    with pytest.raises(PlanError, match="differs"):
        surgery.tie(surgery.open_checkpoint(tmp_path / "base"))


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"architectures": ["T5ForConditionalGeneration"], "model_type": "t5"}, "whatever config.json says"),
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "tie_word_embeddings says more"),
        ({"architectures": ["ZambaForCausalLM"], "model_type": "zamba"}, "tie_word_embeddings says more"),
        ({"architectures": ["LlamaModel"], "model_type": "llama"}, "ties no head"),
        ({"architectures": ["LlamaForSequenceClassification"], "model_type": "llama"}, "ties no head"),
        ({"architectures": ["UnheardOfForCausalLM"]}, "ties no head"),
    ],
)
@pytest.mark.parametrize("surgeon", [surgery.tie, surgery.untie])
def test_classes_that_do_not_listen_to_the_flag_are_refused(
    surgeon: Callable[..., Any], config: dict[str, Any], what: str, tmp_path: Path
) -> None:
    save_file({"shared.weight": torch.ones(4, 4), "lm_head.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"tie_word_embeddings": True, **config}))
    with pytest.raises(NotSupported, match=what):
        surgeon(surgery.open_checkpoint(tmp_path))


def test_without_a_config_it_is_not_known_what_is_tied(tmp_path: Path) -> None:
    save_file({"lm_head.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    for surgeon in (surgery.tie, surgery.untie):
        with pytest.raises(PlanError, match=r"no config\.json says of which class"):
            surgeon(surgery.open_checkpoint(tmp_path / "model.safetensors"))


def test_what_is_so_already_is_said(saved: Callable[..., Path]) -> None:
    with pytest.raises(NothingMatched, match="nothing is tied here"):
        surgery.untie(surgery.open_checkpoint(saved("llama")))
    with pytest.raises(NothingMatched, match="tied already"):
        surgery.tie(surgery.open_checkpoint(saved("llama-tied")))


def test_a_head_that_was_not_stored_is_tied_and_that_is_said(tmp_path: Path) -> None:
    made("llama", tmp_path / "base", tied=True)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    tied = surgery.tie(surgery.open_checkpoint(tmp_path / "base"))
    assert tied.notes == ("was not stored before either, and is tied now: lm_head.weight is model.embed_tokens.weight",)
    assert one(loaded(written(tied, tmp_path / "out")))


class Toy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(12, 8)
        self.head = torch.nn.Linear(8, 12, bias=False)
        self.head.weight = self.embed.weight


def test_what_only_a_header_ties_is_stored_and_the_header_says_it_no_more(tmp_path: Path) -> None:
    save_model(Toy(), str(tmp_path / "model.safetensors"), metadata={"made": "here"})
    out = written(surgery.untie(surgery.open_checkpoint(tmp_path / "model.safetensors")), tmp_path / "out")
    held = load_file(out / "model.safetensors")
    assert torch.equal(held["head.weight"], held["embed.weight"])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"made": "here"}


def test_a_header_that_names_what_is_gone_names_what_is_left(tmp_path: Path) -> None:
    made("llama", tmp_path / "base", tied=False)
    path = tmp_path / "base" / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "copy.weight": "lm_head.weight"})
    out = written(surgery.tie(surgery.open_checkpoint(tmp_path / "base")), tmp_path / "out")
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "copy.weight": "model.embed_tokens.weight"}


def test_in_shards_and_in_large_tensors_the_first_difference_is_found(tmp_path: Path) -> None:
    from surgery.evaluation.first_difference import first_difference

    values = torch.zeros(3_000, 500)
    other = values.clone()
    other[2_999, 499] = 1
    save_file({"a": values, "b": other, "c": values.clone()}, tmp_path / "model.safetensors")
    tensors = surgery.open_checkpoint(tmp_path / "model.safetensors").tensors
    found = first_difference(tensors["a"], tensors["b"])
    assert found
    assert found.place == (2_999, 499)
    assert found.second == b"\0\0\x80\x3f"
    assert first_difference(tensors["a"], tensors["c"]) is None


@pytest.mark.parametrize("scheme", ["nf4", "fp8"])
def test_of_a_quantised_model_the_head_is_stored_where_its_class_takes_it_for_a_plain_one(
    scheme: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 1}
    config = tf.LlamaConfig(**sizes, num_attention_heads=4, tie_word_embeddings=True)
    tf.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path / "plain")
    base = written(surgery.quantize(surgery.open_checkpoint(tmp_path / "plain"), scheme), tmp_path / "base")
    out = written(surgery.untie(surgery.open_checkpoint(base)), tmp_path / "out")
    got, model = loaded(out), loaded(base)
    assert one(model)
    assert not one(got)
    assert got.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(logits(got), logits(model))
    said = json.loads((base / "config.json").read_text())
    key = {"nf4": "llm_int8_skip_modules", "fp8": "modules_to_not_convert"}[scheme]
    said["quantization_config"][key] = ["model.norm"]
    (base / "config.json").write_text(json.dumps(said))
    with pytest.raises(NotSupported, match="look for codes of what would be stored"):
        surgery.untie(surgery.open_checkpoint(base))


SAMPLE = [n for n, known in sorted(TIES.items()) if known.said and not known.always and n not in NEVER]
CLASSES = """
    AfmoeForCausalLM AriaForConditionalGeneration BloomForCausalLM Cohere2VisionForConditionalGeneration
    FalconForCausalLM Gemma3ForConditionalGeneration Glm4vForConditionalGeneration GPTNeoXForCausalLM
    InternVLForConditionalGeneration LlavaForConditionalGeneration MambaForCausalLM MptForCausalLM OPTForCausalLM
    Qwen2VLForConditionalGeneration Qwen3VLForConditionalGeneration Starcoder2ForCausalLM
    WhisperForConditionalGeneration
""".split()
INVALID = ("Gemma4AssistantForCausalLM",)  # whose default config its own class refuses


def test_config_classes_read_the_flag_as_it_is_written() -> None:
    for name in (name for name in SAMPLE if name not in INVALID):
        kind = getattr(tf, name).config_class
        before = {**kind().to_diff_dict(), "model_type": kind.model_type, "architectures": [name]}
        for flags, wanted in ((tied, True), (untied, False)):
            config = {**before, **flags(before)}
            assert bool(kind.from_dict(config).tie_word_embeddings) is wanted, name
            assert (ties(config) is not None) is wanted, name


def small(config: Any, *, tied: bool) -> Any:
    """The config, and those in it, with two layers, and tied or not."""
    for one in (config, *[value for value in vars(config).values() if isinstance(value, tf.PreTrainedConfig)]):
        for key in ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"):
            if isinstance(vars(one).get(key), int):
                setattr(one, key, 2)
        if vars(one).get("layer_types"):
            one.layer_types = one.layer_types[:2]
        one.tie_word_embeddings = tied
    return config


@pytest.mark.parametrize("name", CLASSES)
def test_classes_tie_what_the_table_says_by_that_flag(name: str) -> None:
    kind = getattr(tf, name)
    for flag in (True, False):
        with torch.device("meta"):
            model = kind(small(kind.config_class(), tied=flag))
        assert all((n in model.all_tied_weights_keys) is flag for n in TIES[name].others)


def test_a_config_class_that_refuses_the_flag_is_not_given_it(tmp_path: Path) -> None:
    save_file(
        {"transformer.wte.weight": torch.ones(4, 4), "lm_head.weight": torch.ones(4, 4)}, tmp_path / "model.safetensors"
    )
    config = {"architectures": ["DbrxForCausalLM"], "model_type": "dbrx", "tie_word_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(NotSupported, match="DbrxForCausalLM ties no head"):
        surgery.tie(surgery.open_checkpoint(tmp_path))
