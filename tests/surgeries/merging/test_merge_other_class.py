"""Adapters trained on another class than the checkpoint says: bodies of image and speech models, masked models without
a pooler. The judge is the live model of the class that PEFT trained.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import tiny_models  # noqa: F401  (quiet transformers)
import torch
import transformers as tf
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from typer.testing import CliRunner

import surgery
from surgery.models import classes_table
from surgery.models.heads import heads_of
from surgery.models.tasks import BODY, all_classes_of, classes_of
from surgery_cli.app import app

WIDE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**WIDE, "vocab_size": 96, "max_position_embeddings": 40, "pad_token_id": 0}
LLAMA = {**WIDE, "vocab_size": 96, "num_key_value_heads": 2, "pad_token_id": 0}
IMAGE = {**WIDE, "image_size": 32, "patch_size": 8}
SPEECH = {
    **WIDE, "vocab_size": 40, "conv_dim": (16, 16), "conv_kernel": (4, 4), "conv_stride": (2, 2),
    "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 24, "xvector_output_dim": 20, "tdnn_dim": (16, 16, 16, 16, 16), "pad_token_id": 0,
}  # fmt: skip
SPECTRUM = {**WIDE, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 16, "num_mel_bins": 8}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 2}
WHISPER = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_mel_bins": 8,
    "max_source_positions": 16, "max_target_positions": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "classifier_proj_size": 24,
}  # fmt: skip
T5 = {
    "vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40,
    "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0}
DISTIL = {
    "vocab_size": 96, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 40,
    "pad_token_id": 0,
}  # fmt: skip
CLIP = {
    "text_config": {**BERT, "projection_dim": 16}, "vision_config": {**IMAGE, "projection_dim": 16},
    "projection_dim": 16,
}  # fmt: skip
SIGLIP = {"text_config": BERT, "vision_config": IMAGE}
CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": 32}


class Case(NamedTuple):
    """A base of one class, and LoRA on `aimed` trained on it in another, with modules `saved`."""

    base: str
    config: dict[str, Any]
    trained: str
    aimed: tuple[str, ...]
    saved: tuple[str, ...] = ()
    task: str | None = None
    options: dict[str, Any] = {"num_labels": 5}  # noqa: RUF012


SEQUENCES = "Wav2Vec2ForSequenceClassification"
QV, VALUE, LETTERS = ("q_proj", "v_proj"), ("query", "value"), {"vocab_size": 23}
IMAGES, XVECTOR = ("classifier",), ("projector", "feature_extractor", "classifier", "objective")
CASES = {
    "bert, masked, pooler": Case("BertForMaskedLM", BERT, "BertForSequenceClassification", VALUE,
    ("pooler",), "SEQ_CLS"),
    "bert, masked, pooler, no task": Case("BertForMaskedLM", BERT, "BertForSequenceClassification", VALUE,
    ("classifier", "pooler")),
    "bert, masked, choices": Case("BertForMaskedLM", BERT, "BertForMultipleChoice", VALUE,
    ("classifier", "pooler"), None, {}),
    "bert, bare, masked": Case("BertModel", BERT, "BertForMaskedLM", VALUE, ("cls",), None, {}),
    "llama, bare, causal": Case("LlamaModel", LLAMA, "LlamaForCausalLM", QV, ("lm_head",), "CAUSAL_LM", {}),
    "distilbert, pre_classifier by its end": Case("DistilBertModel", DISTIL, "DistilBertForSequenceClassification",
    ("q_lin", "v_lin"), IMAGES),
    "vit": Case("ViTModel", IMAGE, "ViTForImageClassification", QV, IMAGES),
    "dinov2": Case("Dinov2Model", IMAGE, "Dinov2ForImageClassification", QV, IMAGES),
    "beit": Case("BeitModel", IMAGE, "BeitForImageClassification", QV, IMAGES),
    "deit": Case("DeiTModel", IMAGE, "DeiTForImageClassification", QV, IMAGES),
    "deit, with a teacher": Case("DeiTModel", IMAGE, "DeiTForImageClassificationWithTeacher", QV,
    ("cls_classifier", "distillation_classifier")),
    "swin": Case("SwinModel", SWIN, "SwinForImageClassification", QV, IMAGES),
    "convnext": Case("ConvNextModel", CONVNEXT, "ConvNextForImageClassification", ("pwconv1",), IMAGES),
    "clip": Case("CLIPModel", CLIP, "CLIPForImageClassification", QV, IMAGES),
    "siglip": Case("SiglipModel", SIGLIP, "SiglipForImageClassification", QV, IMAGES),
    "videomae": Case("VideoMAEModel", {**IMAGE, "num_frames": 4}, "VideoMAEForVideoClassification", VALUE,
    ("classifier", "fc_norm")),
    "spectrogram": Case("ASTModel", SPECTRUM, "ASTForAudioClassification", QV, IMAGES),
    "wav2vec2, sequences": Case("Wav2Vec2Model", SPEECH, SEQUENCES, QV, ("projector",), "SEQ_CLS"),
    "wav2vec2, sequences, no task": Case("Wav2Vec2Model", SPEECH, SEQUENCES, QV,
    ("projector", "classifier")),
    "wav2vec2, letters": Case("Wav2Vec2Model", SPEECH, "Wav2Vec2ForCTC", QV, ("lm_head",), None, LETTERS),
    "wav2vec2, pretrained, letters": Case("Wav2Vec2ForPreTraining", SPEECH, "Wav2Vec2ForCTC", QV, ("lm_head",), None,
    LETTERS),
    "wav2vec2, frames": Case("Wav2Vec2Model", SPEECH, "Wav2Vec2ForAudioFrameClassification", QV, IMAGES),
    "wav2vec2, voices": Case("Wav2Vec2Model", SPEECH, "Wav2Vec2ForXVector", QV,
    (*XVECTOR, *(f"tdnn.{i}" for i in range(5)))),
    "hubert, letters": Case("HubertModel", SPEECH, "HubertForCTC", QV, ("lm_head",), None, LETTERS),
    "wavlm, sequences": Case("WavLMModel", SPEECH, "WavLMForSequenceClassification",
    ("intermediate_dense",), ("projector",), "SEQ_CLS"),
    "whisper": Case("WhisperModel", WHISPER, "WhisperForAudioClassification", QV, ("projector", "classifier")),
    "whisper, with a decoder": Case("WhisperForConditionalGeneration", WHISPER, "WhisperForAudioClassification", QV,
    ("projector", "classifier")),
    "bart": Case("BartModel", BART, "BartForConditionalGeneration", QV, ("lm_head",), "SEQ_2_SEQ_LM", {}),
    "gpt2": Case("GPT2Model", GPT2, "GPT2LMHeadModel", ("c_attn",), ("lm_head",), "CAUSAL_LM", {}),
    "t5, encoder": Case("T5EncoderModel", T5, "T5ForTokenClassification", ("q", "v"), (), "TOKEN_CLS"),
}  # fmt: skip


def made(case: Case, folder: Path) -> torch.Tensor:
    """Save the base and the adapter of a case; what the live adapted model computes."""
    return computed(adapted(case, folder))


def adapted(case: Case, folder: Path) -> Any:
    """Save the base and the adapter of a case; the live adapted model."""
    torch.manual_seed(3)
    kind = getattr(tf, case.base)
    model = kind(kind.config_class(**case.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "base")
    saved = {"task_type": case.task, "target_modules": list(case.aimed), "modules_to_save": list(case.saved) or None}
    model = peft.get_peft_model(loaded(case, folder), peft.LoraConfig(r=4, lora_alpha=6, **saved))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(folder / "a"), **({"save_embedding_layers": False} if case.options == LETTERS else {}))
    return peft.PeftModel.from_pretrained(loaded(case, folder), folder / "a").get_base_model().eval()


def loaded(case: Case, folder: Path) -> Any:
    torch.manual_seed(0)
    return getattr(tf, case.trained).from_pretrained(folder / "base", **case.options)


def inputs(model: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shape = {"input_values": (1, 400), "pixel_values": (1, 3, 32, 32), "input_features": (1, 8, 32)}.get(
        model.main_input_name, (1, 11)
    )
    kinds = {"audio-spectrogram-transformer": (1, 16, 8), "videomae": (1, 4, 3, 32, 32)}
    shape = kinds.get(model.config.model_type, shape)
    if model.main_input_name != "input_ids":
        return {model.main_input_name: torch.randn(shape, generator=generator)}
    values = torch.randint(3, 96, shape, generator=generator)
    return {"input_ids": values[None] if "MultipleChoice" in type(model).__name__ else values}


def computed(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found = model.eval()(**inputs(model))
    return next(found[name] for name in ("logits", "start_logits") if name in found).float()


def of_body(model: Any) -> torch.Tensor:
    """What the body of a model computes; of T5, its encoder."""
    body = getattr(model, model.base_model_prefix, model).eval()
    with torch.no_grad():
        found: torch.Tensor = (
            getattr(body, "encoder", body)(**inputs(model))[0]
            if "T5" in type(model).__name__
            else (body(**inputs(model))[0])
        )
    return found.float()


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", CASES)
def test_the_class_that_was_trained_loads_the_result_and_computes_what_the_live_model_does(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    live = made(case, tmp_path)
    base, adapter, out = tmp_path / "base", tmp_path / "a", tmp_path / "out"
    surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter)), out)
    model, info = getattr(tf, case.trained).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert json.loads((out / "config.json").read_text())["architectures"] == [case.trained]
    assert (computed(model) - live).abs().max() <= 1e-5 * live.abs().max()
    assert {name: getattr(model.config, name) for name in case.options} == case.options
    found = surgery.verify(out, base=base, adapter=adapter)
    assert found.ok, found.checks


def without_a_word(adapter: Path) -> None:
    """Take the task and what PEFT noted out of an adapter's config."""
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "task_type": None, "auto_mapping": None}))


@pytest.mark.parametrize(("name", "fit", "not_fit"), [
    ("bert, masked, choices", ["BertForMultipleChoice", "BertForSequenceClassification"], "BertForTokenClassification"),
    ("bert, bare, masked", ["BertForMaskedLM", "BertLMHeadModel"], "BertForPreTraining"),
])  # fmt: skip
def test_of_several_classes_those_that_fit_are_named_and_each_may_be_chosen(
    name: str, fit: list[str], not_fit: str, tmp_path: Path
) -> None:
    case = CASES[name]
    live = made(case, tmp_path)
    without_a_word(tmp_path / "a")
    refused = run("merge", tmp_path / "base", tmp_path / "a", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and f"could be {', '.join(fit)}\n" in refused.output, refused.output
    assert not_fit not in refused.output
    for one in fit:
        out = tmp_path / one
        chosen = run("merge", tmp_path / "base", tmp_path / "a", "-o", out, "--architecture", one)
        assert chosen.exit_code == 0, chosen.output
        assert surgery.verify(out, base=tmp_path / "base", adapter=tmp_path / "a").ok
        if one == case.trained:
            assert (computed(getattr(tf, one).from_pretrained(out)) - live).abs().max() <= 1e-5 * live.abs().max()


@pytest.mark.parametrize("name", [
    "wav2vec2, sequences", "wav2vec2, frames", "wav2vec2, voices", "wav2vec2, letters", "vit", "whisper",
    "bert, masked, pooler",
])  # fmt: skip
def test_without_a_word_of_the_class_the_tensors_tell(name: str, tmp_path: Path) -> None:
    made(CASES[name], tmp_path)
    without_a_word(tmp_path / "a")
    found = surgery.merge(surgery.open_checkpoint(tmp_path / "base"), surgery.open_adapter(tmp_path / "a"))
    assert found.config["architectures"] == [CASES[name].trained]


@pytest.mark.parametrize("kind", ["bert", "beit", "deit", "vit", "wav2vec2", "whisper", "swin", "clip", "llama"])
def test_the_table_is_what_the_classes_are(kind: str) -> None:
    """Where each class holds its body, what it leaves out of it, and what has a row for each label."""
    config = {"model_type": kind}
    body = shapes(classes_of(config)[BODY].name, kind)
    others = [row for text in classes_table.CLASSES.values() for row in text.split() if row.startswith(f"{kind}/")]
    assert others
    for name in (row.partition("/")[2] for row in others):
        one = all_classes_of(config)[name]
        front = f"{one.prefix}." if one.prefix else ""
        kept = {f"{front}{tensor}" for tensor in body if tensor.partition(".")[0] not in one.lacks}
        few, many = shapes(name, kind), shapes(name, kind, 7)
        assert few.keys() == kept | heads_of(config)[name], name
        assert not one.output or few[one.output] != many[one.output]


def shapes(name: str, kind: str, labels: int = 2) -> dict[str, tuple[int, ...]]:
    config: Any = CONFIG_MAPPING[kind]
    with torch.device("meta"):
        model = getattr(tf, name)(config(num_labels=labels))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


NO_HEAD: dict[str, Any] = {}
FOLLOWED = {
    "bert, masked": Case("BertForMaskedLM", BERT, "BertForSequenceClassification", VALUE, (), "SEQ_CLS"),
    "deberta": Case("DebertaV2Model", BERT, "DebertaV2ForSequenceClassification", ("query_proj",), (), "SEQ_CLS"),
    "electra": Case("ElectraForPreTraining", {**BERT, "embedding_size": 16}, "ElectraForMaskedLM", VALUE,
    ("generator_lm_head",), None, NO_HEAD),
    "distilbert": Case("DistilBertForSequenceClassification", DISTIL, "DistilBertForMaskedLM", ("q_lin",),
    ("vocab_projector",), None, NO_HEAD),
    "wav2vec2, no projector": Case("Wav2Vec2Model", SPEECH, SEQUENCES, QV, (), "SEQ_CLS"),
    "whisper, no projector": Case("WhisperModel", WHISPER, "WhisperForAudioClassification", QV, IMAGES),
    "vit": Case("ViTModel", IMAGE, "ViTForImageClassification", QV, (), None, NO_HEAD),
    "vit, trained as a body": Case("ViTForImageClassification", IMAGE, "ViTModel", QV, (), None, NO_HEAD),
    "dinov2": Case("Dinov2Model", IMAGE, "Dinov2ForImageClassification", QV, (), None, NO_HEAD),
    "beit": Case("BeitModel", IMAGE, "BeitForImageClassification", QV, (), None, NO_HEAD),
    "swin": Case("SwinModel", SWIN, "SwinForImageClassification", QV, (), None, NO_HEAD),
    "roberta": Case("RobertaModel", {**BERT, "pad_token_id": 1}, "RobertaForMaskedLM", VALUE, (), None, NO_HEAD),
    "hubert": Case("HubertModel", SPEECH, "HubertForCTC", QV, (), None, NO_HEAD),
    "t5, encoder": Case("T5EncoderModel", T5, "T5ForConditionalGeneration", ("q", "v"), (), "SEQ_2_SEQ_LM", NO_HEAD),
    "t5, encoder, sequences": Case("T5EncoderModel", T5, "T5ForSequenceClassification", ("q", "v"),
    ("classification_head",), "SEQ_CLS"),
    "llama, a head too many": Case("LlamaModel", LLAMA, "LlamaForCausalLM", ("q_proj", "lm_head"), (), "CAUSAL_LM",
    NO_HEAD),
}  # fmt: skip
OPTION = re.compile(r"--[a-z-]+ (?:'[^']*'|[^\s;,]+)")


def advised(output: str) -> list[list[str]]:
    """The options that each piece of an error's help says to give."""
    _, _, tips = output.partition("help: ")
    pieces = (OPTION.findall(piece) for piece in re.split(r"; | or (?=--)", tips))
    return [shlex.split(" ".join(piece)) for piece in pieces if piece]


def followed(folder: Path) -> list[str]:
    """What was given, once the merge follows the first advice of each error until there is none."""
    given: list[str] = []
    for _ in range(4):
        result = run("merge", folder / "base", folder / "a", "-o", folder / "out", *given)
        if result.exit_code == 0:
            return given
        advice = advised(result.output)
        assert result.exit_code == 1 and advice, result.output
        assert not set(advice[0]) <= set(given), f"circular: {result.output}"
        given += advice[0]
    raise AssertionError(f"no end of advice: {given}")


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_an_error_advises_works_when_it_is_done(name: str, tmp_path: Path) -> None:
    """The result's class computes what the live model does; what it draws anew is the live model's for that."""
    case = FOLLOWED[name]
    live = adapted(case, tmp_path)
    given = followed(tmp_path)
    assert given
    made_of = json.loads((tmp_path / "out/config.json").read_text())["architectures"][0]
    model, info = getattr(tf, made_of).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["mismatched_keys"]
    of = computed if made_of == case.trained and "T5" not in made_of else of_body
    if made_of == case.trained:
        assert "--architecture" in given
        kept = {
            name.replace(".base_layer.", ".").replace(".modules_to_save.default.", "."): tensor
            for name, tensor in live.state_dict().items()
            if ".original_module." not in name
        }
        model.load_state_dict({name: kept[name] for name in info["missing_keys"]}, strict=False)
    want, found = of(live), of(model)
    assert (found - want).abs().max() <= 1e-5 * want.abs().max()
    checks = surgery.verify(tmp_path / "out", base=tmp_path / "base", adapter=tmp_path / "a").checks
    assert {one.name for one in checks if not one.ok} <= ({"class"} if info["missing_keys"] else set())


def test_a_rule_is_advised_for_each_part_that_it_could_be(tmp_path: Path) -> None:
    case = Case("CLIPModel", CLIP, "CLIPVisionModel", QV, (), None, {})
    base = getattr(tf, case.base)(tf.CLIPConfig(**case.config))
    base.save_pretrained(tmp_path / "base")
    live = peft.get_peft_model(
        base.vision_model, peft.LoraConfig(r=4, target_modules=list(QV), init_lora_weights=False)
    )
    live.save_pretrained(str(tmp_path / "a"))
    refused = run("merge", tmp_path / "base", tmp_path / "a", "-o", tmp_path / "out")
    said = [["--map", "^=text_model."], ["--map", "^=vision_model."]]
    assert refused.exit_code == 1 and advised(refused.output) == said and "which one is meant" in refused.output
    assert run("merge", tmp_path / "base", tmp_path / "a", "-o", tmp_path / "out", *said[1]).exit_code == 0
    found = tf.CLIPModel.from_pretrained(tmp_path / "out").vision_model.eval()
    pixels = torch.randn(1, 3, 32, 32)
    want = live.eval()(pixels)[0]
    assert (found(pixels)[0] - want).abs().max() <= 1e-5 * want.abs().max()
