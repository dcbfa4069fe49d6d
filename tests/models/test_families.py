"""The tables of what model classes do, against transformers' own classes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as tf
from huggingface_hub.errors import StrictDataclassClassValidationError
from safetensors.torch import load_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

import surgery
from surgery.models.families import (
    CONV1D_MODULES,
    CONV1D_TYPES,
    EMBEDDINGS,
    HEADS,
    TIED_BY_DEFAULT,
    TIED_WITHIN,
    TIES,
    is_conv1d,
    is_tied,
    ties,
)
from surgery.models.fused.tables import TABLE
from surgery.models.ties_table import UNTIED

# Weight tying


@pytest.fixture(scope="module")
def defaults() -> dict[str, Any]:
    """Model type -> its config class's default instance, for every type that has one."""
    found = {}
    for kind in CONFIG_MAPPING_NAMES:
        try:
            found[kind] = CONFIG_MAPPING[kind]()
        except (ValueError, StrictDataclassClassValidationError):  # a composite that needs the configs of its parts
            continue
    return found


def test_tied_by_default_is_what_the_config_classes_say(defaults: dict[str, Any]) -> None:
    assert len(defaults) >= 0.98 * len(CONFIG_MAPPING_NAMES)
    assert {
        kind for kind, config in defaults.items() if getattr(config, "tie_word_embeddings", False)
    } == TIED_BY_DEFAULT


def test_the_tied_are_types_that_transformers_knows() -> None:
    assert set(CONFIG_MAPPING_NAMES) >= TIED_BY_DEFAULT


def test_is_tied_agrees_with_saved_configs(defaults: dict[str, Any]) -> None:
    """As `save_pretrained` writes config.json, which may leave out what is the default."""
    for kind in ("llama", "gemma3_text", "gpt2", "bert", "bloom", "phi3", "gpt_neox", "t5", "mamba"):
        for said in (None, True, False):
            config = CONFIG_MAPPING[kind](**({} if said is None else {"tie_word_embeddings": said}))
            assert is_tied(config.to_diff_dict() | {"model_type": kind}) == config.tie_word_embeddings, (kind, said)


@pytest.mark.parametrize(
    ("config", "tied"),
    [
        ({}, False),
        ({"model_type": "llama"}, False),
        ({"model_type": "gpt2"}, True),
        ({"model_type": "gpt2", "tie_word_embeddings": False}, False),
        ({"model_type": "unheard of", "tie_word_embeddings": True}, True),
        ({"model_type": "unheard of", "text_config": {"tie_word_embeddings": True}}, True),
        (
            {"model_type": "unheard of", "tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
            False,
        ),
    ],
)
def test_what_config_json_says_goes_first(config: dict[str, Any], tied: bool) -> None:
    assert is_tied(config) is tied


SMALLER = {
    **dict.fromkeys(("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layer", "n_layers"), 2),
    "num_local_experts": 2,
    "num_experts": 2,
    "n_routed_experts": 2,
}


def small(config: Any) -> Any:
    """The config, and those in it, with two layers, and tied wherever it can be said."""
    for one in [value for value in vars(config).values() if isinstance(value, tf.PreTrainedConfig)]:
        small(one)
    for key in SMALLER.keys() & vars(config).keys():
        if isinstance(vars(config)[key], int):
            setattr(config, key, SMALLER[key])
    if vars(config).get("layer_types"):
        config.layer_types = config.layer_types[:2]
    config.tie_word_embeddings = True
    return config


def made(name: str) -> Any:
    """The class with a default config that says that it is tied; None where no default config makes one."""
    kind = getattr(tf, name)
    for shape in (small, lambda config: config):
        try:
            config = shape(kind.config_class())
            config.tie_word_embeddings = True
            with torch.device("meta"):
                return kind(config)
        except Exception:  # whatever a default config lacks
            continue
    return None


def tied_in(name: str) -> dict[str, str]:
    """What transformers ties in the class, in its order: in one that can be made, or else by what it says. Not what it
    ties of layers, such as Zamba's, which are as many as config.json says.
    """
    model = made(name)
    found = getattr(tf, name)._tied_weights_keys if model is None else model.all_tied_weights_keys
    return {one: source for one, source in found.items() if not re.search(r"\.\d+\.", one)}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIES)
def test_ties_are_those_of_the_class_in_its_order(name: str) -> None:
    """And the input embedding, and whether config.json can say that they are apart, too."""
    real, ours, model = tied_in(name), TIES[name].others, made(name)
    for source in {*real.values(), *ours.values()}:
        assert [n for n, to in real.items() if to == source] == [n for n, to in ours.items() if to == source]
    if model is None:
        return
    embedding = (TIES[name].embedding or next(iter(ours.values()))).rpartition(".")[0]
    assert model.get_submodule(embedding) is model.get_input_embeddings()
    kind = getattr(tf, name).config_class
    flag = kind(tie_word_embeddings=False).tie_word_embeddings
    assert bool(flag) == TIES[name].always or (flag and kind.model_type in TIED_WITHIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(UNTIED))
def test_classes_that_tie_nothing(name: str) -> None:
    assert tied_in(name) == {}
    assert not is_tied(
        {"architectures": [name], "model_type": getattr(tf, name).config_class.model_type, "tie_word_embeddings": True}
    )


# Ties that depend on more than the class: its layers, options, a nested config's own flag; or that none can be made of.
NOT_BY_CLASS = frozenset(
    """
    DFineForObjectDetection DabDetrForObjectDetection DeformableDetrForObjectDetection GroundingDinoForObjectDetection
    MMGroundingDinoForObjectDetection PPDocLayoutV3Model RTDetrV2ForObjectDetection UdopEncoderModel
    UdopForConditionalGeneration DiffusionGemmaModel PeAudioVideoModel Qwen3OmniMoeTalkerForConditionalGeneration
    EdgeTamModel
    FlavaForPreTraining GraniteSpeech5ForCTC IdeficsForVisionText2Text CsmForConditionalGeneration
    BlipForQuestionAnswering Kosmos2ForConditionalGeneration Florence2ForConditionalGeneration
    SeamlessM4TForSpeechToSpeech
    SeamlessM4TForTextToSpeech SeamlessM4TModel SeamlessM4Tv2ForSpeechToSpeech SeamlessM4Tv2ForTextToSpeech
    SeamlessM4Tv2Model
    """.split()
)


@pytest.mark.slow
def test_every_class_that_says_what_it_ties_is_in_the_table() -> None:
    """Or is known to tie by more than its class."""
    kinds = {name: getattr(tf, name, None) for name in dir(tf) if not name.endswith("PreTrainedModel")}
    says = {
        name
        for name, kind in kinds.items()
        if isinstance(kind, type)
        and issubclass(kind, tf.PreTrainedModel)
        and isinstance(kind._tied_weights_keys, dict)
        and kind._tied_weights_keys
    }
    assert len(says) > 350
    assert says - TIES.keys() <= NOT_BY_CLASS
    assert not NOT_BY_CLASS & TIES.keys()


@pytest.mark.parametrize("name", ["DebertaForMaskedLM", "DebertaV2ForMaskedLM", "MarianModel"])
def test_ties_that_config_json_takes_away(name: str) -> None:
    key = "share_encoder_decoder_embeddings" if name == "MarianModel" else "legacy"
    config = {"architectures": [name], "tie_word_embeddings": True}
    assert ties(config) == TIES[name]
    assert ties({**config, key: True}) == TIES[name]
    assert ties({**config, key: False}) is None


def test_types_that_are_tied_where_the_text_model_says_so() -> None:
    for kind in TIED_WITHIN:
        config = CONFIG_MAPPING[kind]
        saved = config().to_dict()
        text = {**saved["text_config"], "tie_word_embeddings": True}
        assert config(**{**saved, "tie_word_embeddings": False, "text_config": text}).tie_word_embeddings, kind


BUILDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(
        tf.LlamaConfig(hidden_size=12, num_hidden_layers=1, intermediate_size=8, num_attention_heads=2)
    ),
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(n_layer=1, n_embd=12, n_head=2)),
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(
        tf.GPTNeoXConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(hidden_size=12, n_layer=1, n_head=2)),
    "opt": lambda: tf.OPTForCausalLM(
        tf.OPTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, ffn_dim=8, word_embed_proj_dim=12)
    ),
    "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(d_model=12, num_layers=1, num_heads=2, d_ff=8, d_kv=6)),
    "openai-gpt": lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(n_layer=1, n_embd=12, n_head=2)),
    "xglm": lambda: tf.XGLMForCausalLM(tf.XGLMConfig(d_model=12, num_layers=1, attention_heads=2, ffn_dim=8)),
}


@pytest.mark.parametrize("kind", BUILDS)
def test_the_names_of_what_tying_joins(kind: str) -> None:
    """The last names of a model's input and output embeddings are in the two lists."""
    with torch.device("meta"):
        model = BUILDS[kind]()
    called = {id(m): n.rpartition(".")[2] for n, m in model.named_modules()}
    assert called[id(model.get_input_embeddings())] in EMBEDDINGS
    assert called[id(model.get_output_embeddings())] in HEADS


# Conv1D

TINY = {"n_layer": 1, "n_embd": 12, "n_head": 2}
WITH_CONV1D: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**TINY, add_cross_attention=True)),
    "openai-gpt": lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**TINY)),
    "imagegpt": lambda: tf.ImageGPTModel(tf.ImageGPTConfig(**TINY)),
    "decision_transformer": lambda: tf.DecisionTransformerModel(
        tf.DecisionTransformerConfig(n_layer=1, hidden_size=12, n_head=2)
    ),
    "clvp": lambda: tf.ClvpModelForConditionalGeneration(tf.ClvpConfig()),
    "clvp_decoder": lambda: tf.ClvpForCausalLM(tf.ClvpDecoderConfig()),
}
SAME_CLASS = {"gpt-sw3": "gpt2"}  # types without a modeling file of their own


def test_conv1d_types_are_those_whose_code_imports_it() -> None:
    """Every modeling file of transformers that uses Conv1D belongs to a type of the table, and the other way round."""
    models = Path(str(tf.__file__)).parent / "models"
    uses = re.compile(r"^from \.\.\.pytorch_utils import .*\bConv1D\b", re.MULTILINE)
    folders = {f.parent.name for f in models.glob("*/modeling_*.py") if uses.search(f.read_text())}
    assert {CONFIG_MAPPING[kind].__module__.split(".")[2] for kind in CONV1D_TYPES} == folders
    assert set(WITH_CONV1D) | set(SAME_CLASS) == CONV1D_TYPES
    for kind, other in SAME_CLASS.items():
        assert CONFIG_MAPPING[kind] is CONFIG_MAPPING[other]
    with torch.device("meta"):  # of clvp's types, the one that is left out
        assert not any(isinstance(m, Conv1D) for m in tf.ClvpEncoder(tf.ClvpEncoderConfig()).modules())


@pytest.mark.parametrize("kind", WITH_CONV1D)
def test_is_conv1d_of_every_module(kind: str) -> None:
    """Of every module of a model that has any, by type and name alone."""
    with torch.device("meta"):
        model = WITH_CONV1D[kind]()
    real = {n for n, m in model.named_modules() if isinstance(m, Conv1D)}
    assert real
    assert {n for n, _ in model.named_modules() if is_conv1d({"model_type": kind}, n)} == real


def test_conv1d_modules_are_theirs_and_what_splitting_makes_of_them() -> None:
    with torch.device("meta"):
        real = {
            n.rpartition(".")[2]
            for build in WITH_CONV1D.values()
            for n, m in build().named_modules()
            if isinstance(m, Conv1D)
        }
    rows = [row for row in TABLE if row.axis == 1 and set(row.model_types) <= CONV1D_TYPES]
    assert rows and real | {part for row in rows for part in row.parts.values()} == CONV1D_MODULES


def test_the_same_names_are_linear_elsewhere() -> None:
    """GPT-BigCode has c_attn, c_proj and c_fc, too, as nn.Linear."""
    with torch.device("meta"):
        model = tf.GPTBigCodeForCausalLM(tf.GPTBigCodeConfig(**TINY))
    named = [n for n, m in model.named_modules() if n.rpartition(".")[2] in CONV1D_MODULES]
    assert named and not any(is_conv1d({"model_type": "gpt_bigcode"}, n) for n in named)


def test_a_composite_with_a_conv1d_decoder(tmp_path: Path) -> None:
    """Square weights of a GPT-2 inside an encoder-decoder: merged as PEFT merges them, not the other way round."""
    torch.manual_seed(0)
    vision = tf.ViTModel(
        tf.ViTConfig(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
        )
    )
    decoder = tf.GPT2LMHeadModel(
        tf.GPT2Config(**TINY, vocab_size=50, n_positions=8, bos_token_id=1, eos_token_id=2, add_cross_attention=True)
    )
    model = tf.VisionEncoderDecoderModel(encoder=vision, decoder=decoder).eval()
    model.save_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=["attn.c_proj", "crossattention.q_attn"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    adapted.save_pretrained(tmp_path / "adapter")
    merged = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "adapter"))
    surgery.write(merged, tmp_path / "out")
    adapted.merge_and_unload().save_pretrained(tmp_path / "theirs")
    before, ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "out", "theirs"))
    assert ours.keys() == theirs.keys()
    changed = [n for n in ours if not torch.equal(ours[n], before[n])]
    assert len(changed) == merged.history[-1]["computed"] == 2
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)
