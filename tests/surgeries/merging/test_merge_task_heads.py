"""Adapters that turned a model into a classifier, or into its bare model. The judge is the live model of the class
that PEFT trained.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import peft
import pytest
import tiny_models  # noqa: F401  (quiet transformers)
import torch
import transformers as tf
from conftest import hashes
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from typer.testing import CliRunner

import surgery
from surgery.checks.proof import Verdict
from surgery.errors import AdapterError, NotSupported, PlanError, SurgeryError
from surgery.models.heads import heads_of
from surgery.models.tasks import BODY, classes_of, prefix_of
from surgery.models.tasks_table import BODIES, CLASSES
from surgery_cli.app import app

AUTO = {
    "SEQ_CLS": tf.AutoModelForSequenceClassification,
    "TOKEN_CLS": tf.AutoModelForTokenClassification,
    "QUESTION_ANS": tf.AutoModelForQuestionAnswering,
    BODY: tf.AutoModel,
}
MAPPINGS = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "QUESTION_ANS": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    BODY: modeling_auto.MODEL_MAPPING_NAMES,
}
WIDE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
}
LLAMA = {**WIDE, "num_key_value_heads": 2}
BERT = {**WIDE, "max_position_embeddings": 40}
DISTIL = {
    "vocab_size": 96,
    "dim": 32,
    "hidden_dim": 48,
    "n_layers": 2,
    "n_heads": 4,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "pad_token_id": 0}
OPT = {
    "vocab_size": 96, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 40, "pad_token_id": 1,
}  # fmt: skip
T5 = {
    "vocab_size": 96,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2,
}  # fmt: skip


class Case(NamedTuple):
    """A base of class `base`, and LoRA trained on it for `task`, with `saved` beside what PEFT saves for the task."""

    base: str
    config: dict[str, Any]
    task: str
    aimed: tuple[str, ...]
    labels: int = 5
    saved: tuple[str, ...] = ()


Q, ROBERTA, VALUE = ("q_proj", "v_proj"), {**BERT, "max_position_embeddings": 44, "pad_token_id": 1}, ("query", "value")
CASES = {
    "llama, causal": Case("LlamaForCausalLM", LLAMA, "SEQ_CLS", Q),
    "llama, causal, tied": Case("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}, "SEQ_CLS", Q, 2),
    "llama, bare": Case("LlamaModel", LLAMA, "SEQ_CLS", Q, 1),
    "llama, tokens": Case("LlamaForCausalLM", LLAMA, "TOKEN_CLS", Q, 7),
    "llama, questions, bare": Case("LlamaModel", LLAMA, "QUESTION_ANS", Q, 2),
    "llama, features": Case("LlamaForCausalLM", LLAMA, BODY, Q),
    "qwen2, causal": Case("Qwen2ForCausalLM", LLAMA, "SEQ_CLS", Q, 3),
    "qwen2, two labels were": Case("Qwen2ForSequenceClassification", LLAMA, "SEQ_CLS", Q, 5),
    "qwen2, tokens of a classifier": Case("Qwen2ForSequenceClassification", LLAMA, "TOKEN_CLS", Q, 5),
    "mistral, bare": Case("MistralModel", LLAMA, "TOKEN_CLS", Q),
    "mistral, features of a classifier": Case("MistralForSequenceClassification", LLAMA, BODY, Q),
    "gemma, causal": Case("GemmaForCausalLM", {**LLAMA, "head_dim": 8}, "SEQ_CLS", Q),
    "gpt2, causal": Case("GPT2LMHeadModel", GPT2, "SEQ_CLS", ("c_attn",)),
    "gpt2, bare": Case("GPT2Model", GPT2, "TOKEN_CLS", ("c_attn",), 3),
    "gpt2, questions": Case("GPT2LMHeadModel", GPT2, "QUESTION_ANS", ("c_attn",), 2),
    "gpt2, features": Case("GPT2LMHeadModel", GPT2, BODY, ("c_attn",)),
    "opt, causal": Case("OPTForCausalLM", OPT, "SEQ_CLS", Q),
    "opt, bare": Case("OPTModel", OPT, "SEQ_CLS", Q, 2),
    "bert, masked, tokens": Case("BertForMaskedLM", BERT, "TOKEN_CLS", VALUE),
    "bert, bare, tokens": Case("BertModel", BERT, "TOKEN_CLS", VALUE, 9),
    "bert, pretrained": Case("BertForPreTraining", BERT, "SEQ_CLS", VALUE, 3),
    "bert, bare": Case("BertModel", BERT, "SEQ_CLS", VALUE),
    "bert, features": Case("BertForPreTraining", BERT, BODY, VALUE),
    "bert, questions": Case("BertForMaskedLM", BERT, "QUESTION_ANS", VALUE, 2),
    "bert, two labels were": Case("BertForSequenceClassification", BERT, "SEQ_CLS", VALUE),
    "bert, tokens of a classifier of five": Case("BertForSequenceClassification", {**BERT, "num_labels": 5},
    "TOKEN_CLS", VALUE, 2),
    "bert, questions of a classifier of five": Case("BertForSequenceClassification", {**BERT, "num_labels": 5},
    "QUESTION_ANS", VALUE, 2),
    "roberta, masked": Case("RobertaForMaskedLM", ROBERTA, "SEQ_CLS", VALUE),
    "roberta, bare": Case("RobertaModel", ROBERTA, "SEQ_CLS", VALUE, 3),
    "roberta, questions": Case("RobertaForMaskedLM", ROBERTA, "QUESTION_ANS", VALUE, 2),
    "distilbert, masked": Case("DistilBertForMaskedLM", DISTIL, "SEQ_CLS", ("q_lin", "v_lin"), 5, ("pre_classifier",)),
    "distilbert, questions": Case("DistilBertForMaskedLM", DISTIL, "QUESTION_ANS", ("q_lin", "v_lin"), 2),
    "distilbert, features": Case("DistilBertForMaskedLM", DISTIL, BODY, ("q_lin", "v_lin")),
    "deberta-v2, masked": Case("DebertaV2ForMaskedLM", BERT, "TOKEN_CLS", ("query_proj", "value_proj")),
    "deberta-v2, bare": Case("DebertaV2Model", BERT, "SEQ_CLS", ("query_proj", "value_proj"), 3, ("pooler",)),
    "electra, masked": Case("ElectraForMaskedLM", {**BERT, "embedding_size": 16}, "SEQ_CLS", VALUE),
    "electra, discriminator": Case("ElectraForPreTraining", {**BERT, "embedding_size": 16}, "TOKEN_CLS", VALUE, 3),
    "t5": Case("T5ForConditionalGeneration", T5, "SEQ_CLS", ("q", "v"), 5, ("classification_head",)),
    "t5, tokens": Case("T5ForConditionalGeneration", T5, "TOKEN_CLS", ("q", "v"), 4),
    "bart": Case("BartForConditionalGeneration", BART, "SEQ_CLS", Q, 3, ("classification_head",)),
}  # fmt: skip


def made(case: Case, out: Path) -> Path:
    """The base of a case."""
    torch.manual_seed(3)
    kind = getattr(tf, case.base)
    model = kind(kind.config_class(**case.config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(out)
    return out


def loaded(case: Case, path: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    more = {} if case.task == BODY else {"num_labels": case.labels, "ignore_mismatched_sizes": True}
    return AUTO[case.task].from_pretrained(path, **more, **options)


def trained(case: Case, base: Path, out: Path, **more: Any) -> torch.Tensor:
    """Save an adapter with random values to `out`; what PEFT computes live with it, loaded from there."""
    generator = torch.Generator().manual_seed(1)
    lora = {
        "task_type": case.task,
        "target_modules": list(case.aimed),
        "modules_to_save": list(case.saved) or None,
        **more,
    }
    model = peft.get_peft_model(loaded(case, base), peft.LoraConfig(r=4, lora_alpha=6, **lora))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(out))
    return computed(peft.PeftModel.from_pretrained(loaded(case, base), out))


def computed(model: Any) -> torch.Tensor:
    ids = torch.randint(3, 96, (1, 11), generator=torch.Generator().manual_seed(7))
    ids[:, -1] = 1 if "T5" in type(model).__name__ or model.config.model_type == "t5" else 2
    with torch.no_grad():
        result = model.eval()(input_ids=ids)
    names = ("logits", "start_logits", "last_hidden_state")
    return next(result[name] for name in names if name in result).float()


def merged(base: Path, adapter: Path, **options: Any) -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **options)


def said(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


@pytest.mark.parametrize("name", CASES)
def test_the_class_that_was_trained_loads_the_result_and_computes_what_the_live_model_does(
    name: str, tmp_path: Path
) -> None:
    case = CASES[name]
    base, out = made(case, tmp_path / "base"), tmp_path / "out"
    live = trained(case, base, tmp_path / "a")
    surgery.write(merged(base, tmp_path / "a"), out)
    model, info = AUTO[case.task].from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    assert said(out)["architectures"] == [type(model).__name__]
    assert (computed(model) - live).abs().max() <= 1e-5 * live.abs().max()
    if case.task != BODY:
        assert model.config.num_labels == case.labels and len(model.config.label2id) == case.labels
    assert surgery.verify(out).ok, surgery.verify(out).checks
    found = surgery.verify(out, base=base, adapter=tmp_path / "a")
    assert found.ok, found.checks
    assert found.proof and found.proof.of(Verdict.EXACT)


@pytest.mark.parametrize(
    "name", ["llama, causal", "llama, bare", "bert, two labels were", "gpt2, features", "t5, tokens"]
)
def test_it_is_taken_back_by_its_record(name: str, tmp_path: Path) -> None:
    base = made(CASES[name], tmp_path / "base")
    trained(CASES[name], base, tmp_path / "a")
    surgery.write(surgery.reversible(merged(base, tmp_path / "a"), surgery.open_checkpoint(base)), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(base)


@pytest.mark.parametrize(("base", "config", "ties"), [
    ("BertModel", BERT, 0), ("RobertaModel", ROBERTA, 0), ("GPT2Model", GPT2, 0), ("T5Model", T5, 0), ("OPTModel", OPT,
    0),
    ("BertForMaskedLM", BERT, 1), ("GPT2LMHeadModel", GPT2, 1), ("BertForSequenceClassification", BERT, 0),
])  # fmt: skip
def test_the_embedding_of_a_class_without_a_head_is_called_no_head(
    base: str, config: dict[str, Any], ties: int, tmp_path: Path
) -> None:
    made(Case(base, config, BODY, ()), tmp_path / "base")
    assert len(surgery.inspect(tmp_path / "base").ties) == ties


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a causal base, an adapter of a classifier of five labels)."""
    folder, case = tmp_path_factory.mktemp("five"), CASES["llama, causal"]
    base = made(case, folder / "base")
    trained(case, base, folder / "a")
    return base, folder / "a"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(a masked base without a pooler, an adapter of a classifier of sequences)."""
    folder, case = tmp_path_factory.mktemp("bert"), Case("BertForMaskedLM", BERT, "SEQ_CLS", VALUE)
    base = made(case, folder / "base")
    trained(case, base, folder / "a")
    return base, folder / "a"


def told(adapter: Path, out: Path, **config: Any) -> Path:
    """A copy of the adapter whose config says something else."""
    shutil.copytree(adapter, out)
    before = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps({**before, **config}))
    return out


def test_what_is_left_out_is_named(five: tuple[Path, Path]) -> None:
    found = merged(*five)
    assert sorted(found.dropped) == ["lm_head.weight"]
    assert "left out, since LlamaForSequenceClassification has no place for them: lm_head.weight" in found.notes
    assert any(
        "LlamaForSequenceClassification, with 5 labels, no more LlamaForCausalLM" in note for note in found.notes
    )


def test_names_of_labels_stay_where_they_are_as_many(tmp_path: Path) -> None:
    names = {"id2label": {"0": "bad", "1": "so", "2": "good"}, "label2id": {"bad": 0, "so": 1, "good": 2}}
    case = Case(
        "BertForSequenceClassification",
        {**BERT, **names, "problem_type": "multi_label_classification"},
        "SEQ_CLS",
        VALUE,
        3,
    )
    base = made(case, tmp_path / "base")
    trained(case, base, tmp_path / "a")
    surgery.write(merged(base, tmp_path / "a"), tmp_path / "out")
    assert said(tmp_path / "out") == said(base)


def test_one_label_is_a_regression_and_what_was_said_of_other_labels_goes(tmp_path: Path) -> None:
    names = {"id2label": {"0": "bad", "1": "so", "2": "good"}, "label2id": {"bad": 0, "so": 1, "good": 2}}
    said_before = {**LLAMA, **names, "problem_type": "single_label_classification"}
    case = Case("Qwen2ForSequenceClassification", said_before, "SEQ_CLS", Q, 1)
    base = made(case, tmp_path / "base")
    trained(case, base, tmp_path / "a")
    found = merged(base, tmp_path / "a").config
    assert (found["id2label"], found["label2id"], found["problem_type"]) == (
        {"0": "LABEL_0"},
        {"LABEL_0": 0},
        "regression",
    )


def test_a_class_with_modules_that_nothing_holds_is_refused_unless_it_is_named(
    bert: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(
        AdapterError, match="BertForSequenceClassification has 1 modules that neither the base nor the adapter"
    ) as error:
        merged(*bert)
    assert "bert.pooler" in error.value.where and "--architecture BertForSequenceClassification" in (
        error.value.help or ""
    )
    surgery.write(merged(*bert, architecture="BertForSequenceClassification"), tmp_path / "out")
    assert said(tmp_path / "out")["architectures"] == ["BertForSequenceClassification"]


def test_a_head_of_more_than_one_class_is_refused_with_the_option_that_decides(
    bert: tuple[Path, Path], tmp_path: Path
) -> None:
    adapter = told(bert[1], tmp_path / "a", task_type=None, auto_mapping=None)
    with pytest.raises(AdapterError, match="which class it is of is not clear") as error:
        merged(bert[0], adapter)
    assert any("BertForTokenClassification" in row for row in error.value.where) and "--architecture" in (
        error.value.help or ""
    )
    arguments = [
        "merge",
        str(bert[0]),
        str(adapter),
        "-o",
        str(tmp_path / "out"),
        "--architecture",
        "BertForTokenClassification",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    kind: Any = tf.BertForTokenClassification
    model, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()) and model.config.num_labels == 5
    assert surgery.verify(tmp_path / "out", base=bert[0], adapter=adapter).ok


def test_without_a_task_type_the_head_or_what_peft_noted_tells(
    five: tuple[Path, Path], bert: tuple[Path, Path], tmp_path: Path
) -> None:
    noted = {
        "base_model_class": "BertForTokenClassification",
        "parent_library": "transformers.models.bert.modeling_bert",
    }
    adapter = told(bert[1], tmp_path / "a", task_type=None, auto_mapping=noted)
    assert merged(bert[0], adapter).config["architectures"] == ["BertForTokenClassification"]
    noted = {
        "base_model_class": "LlamaForSequenceClassification",
        "parent_library": "transformers.models.llama.modeling_llama",
    }
    adapter = told(five[1], tmp_path / "b", task_type=None, auto_mapping=noted)
    assert merged(five[0], adapter).config["architectures"] == ["LlamaForSequenceClassification"]


def test_two_adapters_of_two_classes_are_refused(bert: tuple[Path, Path], tmp_path: Path) -> None:
    case = CASES["bert, masked, tokens"]
    trained(case, bert[0], tmp_path / "a")
    trained(CASES["bert, questions"], bert[0], tmp_path / "b")
    opened = [surgery.open_adapter(tmp_path / name) for name in "ab"]
    with pytest.raises(PlanError, match="trained in different classes"):
        surgery.merge(surgery.open_checkpoint(bert[0]), opened)


def test_a_body_that_transformers_does_not_reach_is_refused(tmp_path: Path) -> None:
    case = Case("LlamaForCausalLM", LLAMA, "QUESTION_ANS", Q, 2)
    base = made(case, tmp_path / "base")
    trained(case, base, tmp_path / "a")
    with pytest.raises(AdapterError, match="loads nothing into it from under model"):
        merged(base, tmp_path / "a")


def test_a_head_that_takes_the_place_of_another_has_no_weight(tmp_path: Path) -> None:
    case = CASES["bert, two labels were"]
    base = made(case, tmp_path / "base")
    trained(case, base, tmp_path / "a")
    with pytest.raises(NotSupported, match="only be merged with weight 1"):
        merged(base, tmp_path / "a", weights=[0.5])


def test_a_head_that_is_left_out_leaves_the_class(five: tuple[Path, Path]) -> None:
    found = merged(*five, except_=".*score")
    assert found.config == surgery.open_checkpoint(five[0]).config and "lm_head.weight" in found.tensors


def test_an_architecture_that_the_type_has_not_is_refused(five: tuple[Path, Path]) -> None:
    with pytest.raises(
        SurgeryError, match="how model type `llama` becomes a `LlamaForSequenceClasification` is not known"
    ) as error:
        merged(*five, architecture="LlamaForSequenceClasification")
    assert "LlamaForSequenceClassification" in (error.value.help or "")


def test_a_bare_model_with_parts_that_nothing_holds_is_refused_unless_it_is_named(
    bert: tuple[Path, Path], tmp_path: Path
) -> None:
    trained(Case("BertForMaskedLM", BERT, BODY, VALUE), bert[0], tmp_path / "a")
    with pytest.raises(AdapterError, match="BertModel has 1 modules that neither") as error:
        merged(bert[0], tmp_path / "a")
    assert "pooler" in error.value.where
    found = merged(bert[0], tmp_path / "a", architecture="BertModel")
    assert "encoder.layer.0.attention.self.query.weight" in found.tensors and not [
        n for n in found.tensors if n.startswith("cls.")
    ]


@pytest.mark.parametrize(
    ("base", "config", "aimed"), [("T5EncoderModel", T5, ("q", "v")), ("LlamaForCausalLM", LLAMA, Q)]
)
def test_features_trained_in_the_base_class_leave_it(
    base: str, config: dict[str, Any], aimed: tuple[str, ...], tmp_path: Path
) -> None:
    made(Case(base, config, BODY, aimed), tmp_path / "base")
    model = peft.get_peft_model(
        getattr(tf, base).from_pretrained(tmp_path / "base"),
        peft.LoraConfig(task_type=BODY, target_modules=list(aimed), r=2),
    )
    model.save_pretrained(str(tmp_path / "a"))
    found, before = merged(tmp_path / "base", tmp_path / "a"), surgery.open_checkpoint(tmp_path / "base")
    assert found.config == before.config and found.tensors.keys() == before.tensors.keys()


def test_the_table_is_that_of_the_auto_classes() -> None:
    rows = [(task, *row.split("/")) for (task, *_), classes in CLASSES.items() for row in classes.split()]
    rows += [(BODY, *row.split("/")) for classes in BODIES.values() for row in classes.split()]
    assert len(rows) == len(set(rows)) > 550
    has: dict[tuple[str, ...], Any] = {row: MAPPINGS[row[0]][row[1]] for row in rows}
    assert not [
        row for row, found in has.items() if row[2] != found and (isinstance(found, str) or row[2] not in found)
    ]


CHECKED = (
    "albert bart bert bloom deberta-v2 distilbert electra falcon gemma gpt2 llama mixtral modernbert opt phi3 qwen2"
    " roberta t5 xlnet"
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CHECKED.split())
def test_the_table_is_what_the_classes_are(kind: str) -> None:
    """Where each class holds its body, what it leaves out of it, and what has a row for each label."""
    config = {"model_type": kind}
    bare = getattr(tf, classes_of(config)[BODY].name)
    body = shapes(bare, kind)
    assert bare.base_model_prefix == prefix_of(config)
    assert not {name for head in heads_of(config).values() for name in head} & body.keys()
    for one in classes_of(config).values():
        if one.task == BODY:
            continue
        few, many = shapes(getattr(tf, one.name), kind), shapes(getattr(tf, one.name), kind, 7)
        front = f"{one.prefix}." if one.prefix else ""
        want = {f"{front}{name}" for name in body if name.partition(".")[0] not in one.lacks} | one.head
        assert few.keys() == want, one.name
        if one.output:
            changed = {name for name in few if few[name] != many[name]}
            assert changed - {one.output.removesuffix(".weight") + ".bias"} == {one.output}


def shapes(model: Any, kind: str, labels: int = 2) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        if model.__name__ == "DistilBertForQuestionAnswering":
            labels = 2
        config: Any = CONFIG_MAPPING[kind]
        built = model(config(num_labels=labels))
    return {name: tuple(tensor.shape) for name, tensor in built.state_dict().items()}
