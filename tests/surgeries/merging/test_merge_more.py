"""Merging what is more than plain LoRA on linear layers: embeddings, biases, tokens, ties, vocabularies, parts of
adapters.

The judge is PEFT's live model: the adapter as PEFT loads it from the file, computed by transformers' own modules.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from conftest import hashes
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import surgery
from surgery.errors import AdapterError, NothingMatched, NotSupported, PlanError, SurgeryError
from surgery.models.families import ties
from surgery_cli.app import app

EPS = torch.finfo(torch.float32).eps
IDS = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(7))
_BERT = {"vocab_size": 97, "hidden_size": 36, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 3}
_T5 = {"vocab_size": 97, "d_model": 36, "d_kv": 8, "d_ff": 50, "num_layers": 2, "num_heads": 3}
_BART = {
    **tiny_models.TEXT, "d_model": 36, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 3,
    "decoder_attention_heads": 3, "encoder_ffn_dim": 50, "decoder_ffn_dim": 50,
}  # fmt: skip
_SMALL = {"hidden_size": 36, "num_hidden_layers": 1, "num_attention_heads": 3}
FAMILIES: dict[str, Callable[[], tf.PreTrainedModel]] = {
    **{name: tiny_models.MODELS[name] for name in ("llama", "llama-tied", "gpt2", "bloom", "bert")},
    "bert-mlm": lambda: tf.BertForMaskedLM(tf.BertConfig(**_BERT)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_BERT)),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**_T5)),
    "switch": lambda: tf.SwitchTransformersForConditionalGeneration(
        tf.SwitchTransformersConfig(
            **_T5 | {"num_layers": 1}, num_decoder_layers=1, num_experts=2, tie_word_embeddings=True
        )
    ),
    "bart": lambda: tf.BartForConditionalGeneration(tf.BartConfig(**_BART)),
    "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**tiny_models.TEXT, **_SMALL, ffn_dim=50, word_embed_proj_dim=36)),
    "falcon": lambda: tf.FalconForCausalLM(tf.FalconConfig(**tiny_models.TEXT, **_SMALL)),
    "distilbert": lambda: tf.DistilBertForMaskedLM(
        tf.DistilBertConfig(vocab_size=97, dim=36, hidden_dim=70, n_layers=1, n_heads=3)
    ),
    "electra": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**_BERT, embedding_size=36)),
    "cohere": lambda: tf.CohereForCausalLM(
        tf.CohereConfig(
            **tiny_models.TEXT, **_SMALL, intermediate_size=50, num_key_value_heads=3, tie_word_embeddings=True
        )
    ),
}


def build(family: str) -> Any:
    """The family's model in eval mode; every parameter random, biases and norms included."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2 or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def output(model: Any) -> torch.Tensor:
    """Logits on fixed tokens, or start logits."""
    with torch.no_grad():
        more = {"decoder_input_ids": IDS.flip(1)} if model.config.is_encoder_decoder else {}
        result = model(input_ids=IDS, **more)
    return (result["logits"] if "logits" in result else result["start_logits"]).float()


def base_of(family: str, path: Path, **options: Any) -> Path:
    """The family's checkpoint at `path`, as save_pretrained writes it; once."""
    if not path.exists():
        build(family).save_pretrained(path, **options)
    return path


def trained(base: Path, family: str, out: Path, *, resize: int = 0, seed: int = 1, **options: Any) -> torch.Tensor:
    """Save an adapter of random factors to `out`, and return what PEFT computes live with it, loaded from there."""
    kind, generator = type(build(family)), torch.Generator().manual_seed(seed)

    def fresh() -> Any:
        model = kind.from_pretrained(base).eval()
        if resize:
            torch.manual_seed(5)
            model.resize_token_embeddings(resize)
        return model

    model = peft.get_peft_model(fresh(), peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **options})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(out)
    return output(peft.PeftModel.from_pretrained(fresh(), out).eval())


def merged(base: Path, adapters: Path | list[Path], out: Path, **options: Any) -> surgery.Report:
    """The base with the adapters merged, written to `out`."""
    opened = [surgery.open_adapter(a) for a in ([adapters] if isinstance(adapters, Path) else adapters)]
    return surgery.write(surgery.merge(surgery.open_checkpoint(base), opened, **options), out)


def compare_outputs(out: Path, live: torch.Tensor, base: Path, family: str) -> None:
    """The checkpoint loads without a missing or unexpected key, and computes `live`, from which its base is far."""
    kind = type(build(family))
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    before, made = output(kind.from_pretrained(base).eval()), output(model.eval())
    largest = live.abs().max().item()
    error, effect = (made - live).abs().max().item(), (live[..., : before.shape[-1]] - before).abs().max().item()
    assert error <= 1e-5 * largest, f"off by {error} of {largest}"
    assert effect >= 1000 * max(error, EPS * largest), (
        f"an effect of {effect} proves nothing against an error of {error}"
    )


@dataclass(frozen=True)
class Case:
    """A family, the LoraConfig of its adapter, and the tensors that the merged checkpoint has and its base has not."""

    family: str
    lora: Mapping[str, Any]
    added: tuple[str, ...] = ()
    saved: Mapping[str, Any] = field(default_factory=dict)


HEAD = ("lm_head.weight",)
DECODER = ("cls.predictions.decoder.weight",)
TOKENS = {"target_modules": ["v_proj"], "trainable_token_indices": [90, 5, 6, 40, 0, 96]}
T5_IN = ("decoder.embed_tokens.weight", "encoder.embed_tokens.weight")
CASES = {
    "untied, embedding": Case("llama", {"target_modules": ["embed_tokens"]}),
    "untied, embedding and head, sharded": Case(
        "llama", {"target_modules": ["embed_tokens", "lm_head"]}, (), {"max_shard_size": "20KB"}
    ),
    "untied, saved": Case("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "untied, tokens": Case("llama", TOKENS),
    "untied, tokens of the head": Case(
        "llama", {**TOKENS, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}}
    ),
    "tied, embedding": Case("llama-tied", {"target_modules": ["embed_tokens"]}, HEAD),
    "tied, embedding, sharded": Case(
        "llama-tied", {"target_modules": ["embed_tokens", "v_proj"]}, HEAD, {"max_shard_size": "20KB"}
    ),
    "tied, head": Case("llama-tied", {"target_modules": ["lm_head"]}, HEAD),
    "tied, both": Case("llama-tied", {"target_modules": ["embed_tokens", "lm_head"]}, HEAD),
    "tied, embedding saved": Case(
        "llama-tied", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}, HEAD
    ),
    "tied, head saved": Case("llama-tied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]}, HEAD),
    "tied, both saved": Case(
        "llama-tied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]}, HEAD
    ),
    "tied, tokens": Case("llama-tied", TOKENS),
    "tied, tokens of both": Case(
        "llama-tied", {**TOKENS, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [3, 5]}}
    ),
    "tied, tokens of each": Case(
        "llama-tied", {**TOKENS, "trainable_token_indices": {"embed_tokens": [3, 5], "lm_head": [4]}}, HEAD
    ),
    "tied, tokens of the head": Case("llama-tied", {**TOKENS, "trainable_token_indices": {"lm_head": [4, 50]}}, HEAD),
    "kept tied, embedding": Case("llama-tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "kept tied, head": Case("llama-tied", {"target_modules": ["lm_head", "v_proj"], "ensure_weight_tying": True}),
    "kept tied, saved": Case(
        "llama-tied", {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"], "ensure_weight_tying": True}
    ),
    "gpt2, embedding": Case("gpt2", {"target_modules": ["wte", "c_attn"]}, HEAD),
    "gpt2, head": Case("gpt2", {"target_modules": ["lm_head"]}, HEAD),
    "gpt2, tokens": Case("gpt2", {"target_modules": ["c_attn"], "trainable_token_indices": [7, 8, 9]}),
    "gpt2, biases": Case("gpt2", {"target_modules": ["c_attn", "c_proj"], "lora_bias": True, "use_rslora": True}),
    "bloom, embedding": Case("bloom", {"target_modules": ["word_embeddings"]}, HEAD),
    "bloom, biases": Case("bloom", {"target_modules": ["query_key_value"], "lora_bias": True}),
    "bert, biases": Case(
        "bert", {"target_modules": ["query", "dense"], "lora_bias": True, "alpha_pattern": {"query": 3}}
    ),
    "bert, embedding without a head": Case("bert", {"target_modules": ["word_embeddings"]}),
    "bert, embedding": Case("bert-mlm", {"target_modules": ["word_embeddings"]}, DECODER),
    "bert, decoder": Case("bert-mlm", {"target_modules": ["decoder"]}, DECODER),
    "bert, decoder and bias": Case(
        "bert-mlm",
        {"target_modules": ["decoder", "query"], "lora_bias": True},
        ("cls.predictions.decoder.bias", *DECODER),
    ),
    "bert, decoder saved": Case(
        "bert-mlm",
        {"target_modules": ["query"], "modules_to_save": ["decoder"]},
        ("cls.predictions.decoder.bias", *DECODER),
    ),
    "roberta, decoder": Case("roberta", {"target_modules": ["decoder"]}, ("lm_head.decoder.weight",)),
    "t5, head": Case("t5", {"target_modules": ["lm_head", "q"]}, HEAD),
    "t5, embeddings": Case("t5", {"target_modules": ["embed_tokens"]}, T5_IN),
    "t5, decoder's embedding saved": Case(
        "t5", {"target_modules": ["q"], "modules_to_save": ["decoder.embed_tokens"]}, T5_IN[:1]
    ),
    "switch, head": Case("switch", {"target_modules": ["lm_head"]}, HEAD),
    "bart, head": Case("bart", {"target_modules": ["lm_head"]}, HEAD),
    "distilbert, decoder": Case("distilbert", {"target_modules": ["vocab_projector"]}, ("vocab_projector.weight",)),
    "electra, embedding": Case("electra", {"target_modules": ["word_embeddings"]}, ("generator_lm_head.weight",)),
    "cohere, head": Case("cohere", {"target_modules": ["lm_head"]}, HEAD),
}


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints, each made once."""
    return tmp_path_factory.mktemp("bases")


@pytest.mark.parametrize("name", CASES)
def test_merged_computes_what_the_live_model_computes(name: str, bases: Path, tmp_path: Path) -> None:
    case = CASES[name]
    base = base_of(case.family, bases / f"{case.family}{len(case.saved)}", **case.saved)
    live = trained(base, case.family, tmp_path / "a", **case.lora)
    report = merged(base, tmp_path / "a", tmp_path / "out")
    before, after = (set(surgery.open_checkpoint(folder).tensors) for folder in (base, tmp_path / "out"))
    assert tuple(sorted(after - before)) == case.added and before <= after
    compare_outputs(tmp_path / "out", live, base, case.family)
    said, was = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", base))
    known = ties(was)
    untied = {"tie_word_embeddings": False} if case.added and known and known.said else {}
    assert said == was | untied
    assert any("makes tied tensors differ" in note for note in report.notes) == bool(case.added)


def test_a_bias_that_is_saved_three_times_is_the_trained_one(bases: Path, tmp_path: Path) -> None:
    """With bias="all" PEFT writes a saved head's frozen bias, and its trained one twice."""
    base = base_of("bert", bases / "bert0")
    live = trained(base, "bert", tmp_path / "a", target_modules=["query"], bias="all", task_type="QUESTION_ANS")
    dropped = surgery.plan(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "a"))).dropped
    assert dropped == tuple(f"{PREFIX}qa_outputs.{spare}.bias" for spare in ("modules_to_save", "original_module"))
    merged(base, tmp_path / "a", tmp_path / "out")
    compare_outputs(tmp_path / "out", live, base, "bert")


# What keeps two tied tensors apart

PREFIX = "base_model.model."


@pytest.mark.parametrize(
    "family", ["llama-tied", "gpt2", "bloom", "bert-mlm", "roberta", "t5", "switch", "bart", "distilbert", "electra"]
)
def test_the_table_says_what_keeps_tied_tensors_apart(family: str, bases: Path, tmp_path: Path) -> None:
    """With the flag that the table says, the class computes with each of two stored tensors; where it says to keep
    it, the other fails.
    """
    base = base_of(family, bases / f"{family}0")
    model, config = build(family), json.loads((base / "config.json").read_text())
    known = ties(config)
    assert known is not None
    name = [n for n in known.others if n.endswith("weight")][-1]
    tensors = load_file(base / "model.safetensors")
    tensors[name] = tensors[known.others[name]] + torch.randn(tensors[known.others[name]].shape)
    model.get_submodule(name.rpartition(".")[0]).weight = torch.nn.Parameter(tensors[name].clone())
    for said in (True, False):
        folder = tmp_path / str(said)
        folder.mkdir()
        config.pop("scale_decoder_outputs", None)  # which T5 takes from the flag where it is not said
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": said}))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        right = torch.equal(output(type(model).from_pretrained(folder).eval()), output(model))
        assert right == (said or known.said)


# Vocabularies of another size


@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("llama", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", {"target_modules": ["v_proj"]}),
        ("llama-tied", {"target_modules": ["v_proj"]}),
        ("llama-tied", {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}),
        (
            "llama-tied",
            {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        ),
        ("llama-tied", {"target_modules": ["embed_tokens"]}),
        ("llama-tied", {"target_modules": ["v_proj"], "trainable_token_indices": [3, 99]}),
    ],
    ids=["saved", "resized alone", "tied, alone", "tied, saved", "kept tied, saved", "tied, LoRA", "tied, tokens"],
)
def test_a_resized_vocabulary_is_followed(family: str, lora: Mapping[str, Any], bases: Path, tmp_path: Path) -> None:
    base = shutil.copytree(base_of(family, bases / f"{family}0"), tmp_path / "base")
    (base / "tokenizer.json").write_text("the base's")
    live = trained(base, family, tmp_path / "a", resize=100, **lora)
    (tmp_path / "a/tokenizer.json").write_text("the adapter's")
    report = merged(base, tmp_path / "a", tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == 100
    assert (tmp_path / "out/tokenizer.json").read_text() == "the adapter's"
    assert any(note.startswith("the tokenizer is the adapter's: tokenizer.json") for note in report.notes)
    compare_outputs(tmp_path / "out", live, base, family)


def test_an_embedding_of_the_old_size_leaves_the_config(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"], modules_to_save=["embed_tokens"])
    (tmp_path / "a/tokenizer.json").write_text("the adapter's")
    merged(base, tmp_path / "a", tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (base / "config.json").read_bytes()
    assert (tmp_path / "out/tokenizer.json").read_text() == "the adapter's"


def test_refuses_half_a_resized_vocabulary(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", resize=100, target_modules=["v_proj"])
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    del tensors[f"{PREFIX}lm_head.weight"]
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    check_refused(
        base, tmp_path / "a", AdapterError,
        "the adapter resizes a part of the vocabulary's tensors, and not the others",
        "lm_head.weight: 97 rows", "model.embed_tokens.weight: 100 rows", "save_embedding_layers=True",
    )  # fmt: skip


# Parts of an adapter, factors, and history


def check_refused(
    base: Path, adapters: Path | list[Path], kind: type[SurgeryError], what: str, *more: str, **options: Any
) -> None:
    """Merging raises `kind` with this text, `more` in where or help, and writes nothing."""
    first = adapters if isinstance(adapters, Path) else adapters[0]
    before = set(first.parent.iterdir())
    with pytest.raises(kind) as caught:
        merged(base, adapters, first.parent / "refused", **options)
    assert type(caught.value) is kind and caught.value.what == what, str(caught.value)
    for text in more:
        assert text in str(caught.value)
    assert set(first.parent.iterdir()) == before


def test_patterns_choose_modules(bases: Path, tmp_path: Path) -> None:
    """What the patterns leave out is dropped by name; the rest computes what PEFT computes without it."""
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["q_proj", "v_proj", "embed_tokens"])
    checkpoint = surgery.open_checkpoint(base)
    options = {"only": r".*_proj", "except_": r"model\.layers\.1\..*"}
    plan = surgery.plan(surgery.merge(checkpoint, surgery.open_adapter(tmp_path / "a"), **options))
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    gone = {n for n in tensors if "embed_tokens" in n or ".layers.1." in n}
    assert set(plan.dropped) == gone and len(gone) == 7
    merged(base, tmp_path / "a", tmp_path / "out", **options)
    save_file({n: t for n, t in tensors.items() if n not in gone}, tmp_path / "a/adapter_model.safetensors")
    merged(base, tmp_path / "a", tmp_path / "same")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "same")
    live = output(peft.PeftModel.from_pretrained(tf.LlamaForCausalLM.from_pretrained(base), tmp_path / "a").eval())
    compare_outputs(tmp_path / "out", live, base, "llama")


def test_patterns_that_match_nothing_are_errors(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"])
    tip = "it occurs inside 3 names, such as model.layers.0.self_attn.v_proj"
    for option in ("only", "except_"):
        check_refused(
            base, tmp_path / "a", NothingMatched, "no tensor's whole name matches `v_proj`", tip, **{option: "v_proj"}
        )
    check_refused(base, tmp_path / "a", NothingMatched, "the patterns leave nothing to merge", "v_proj", except_=".*")


def test_a_scale_multiplies_all_weights(bases: Path, tmp_path: Path) -> None:
    base = base_of("bert", bases / "bert0")
    for i in range(2):
        trained(base, "bert", tmp_path / str(i), seed=i, target_modules=["query", "word_embeddings"], lora_bias=False)
        tensors = load_file(tmp_path / str(i) / "adapter_model.safetensors")
        save_file(
            {n: t for n, t in tensors.items() if "base_layer" not in n}, tmp_path / str(i) / "adapter_model.safetensors"
        )
    folders = [tmp_path / "0", tmp_path / "1"]
    merged(base, folders, tmp_path / "out", weights=[0.5, -1.5], scale=-2)
    merged(base, folders, tmp_path / "same", weights=[-1, 3])
    assert hashes(tmp_path / "out") == hashes(tmp_path / "same")
    name = "bert.embeddings.word_embeddings.weight"
    exact = load_file(base / "model.safetensors")[name].double()
    for folder, weight in zip(folders, (-1, 3), strict=True):
        factors = load_file(folder / "adapter_model.safetensors")
        stem = f"{PREFIX}{name.removesuffix('.weight')}.lora_embedding_"
        exact += weight * 1.5 * (factors[f"{stem}B"].double() @ factors[f"{stem}A"].double()).T
    torch.testing.assert_close(
        load_file(tmp_path / "out/model.safetensors")[name].double(), exact, rtol=1e-6, atol=1e-6
    )


def test_a_weighted_bias_is_the_live_one(bases: Path, tmp_path: Path) -> None:
    """Weight -2 is alpha * -2, for lora_B's bias too."""
    base = base_of("gpt2", bases / "gpt20")
    trained(base, "gpt2", tmp_path / "a", target_modules=["c_attn"], lora_bias=True)
    merged(base, tmp_path / "a", tmp_path / "out", weights=[-2.0])
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "lora_alpha": -2 * config["lora_alpha"]}))
    live = output(peft.PeftModel.from_pretrained(tf.GPT2LMHeadModel.from_pretrained(base), tmp_path / "a").eval())
    compare_outputs(tmp_path / "out", live, base, "gpt2")


@pytest.mark.parametrize(
    "options", [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3]}], ids=["saved", "tokens"]
)
def test_refuses_to_weigh_whole_tensors(options: dict[str, Any], bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"], **options)
    what = "an adapter that replaces whole tensors can only be merged with weight 1"
    check_refused(base, tmp_path / "a", NotSupported, what, "--except", scale=0.5)
    merged(base, tmp_path / "a", tmp_path / "out", scale=0.5, except_="lm_head|.*embed_tokens")


def test_an_adapter_is_merged_once(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"])
    what = "the adapter is merged into this base already"
    check_refused(
        base, [tmp_path / "a", tmp_path / "a"], PlanError, "the adapter is given twice", str(tmp_path / "a"), "--again"
    )
    merged(base, tmp_path / "a", tmp_path / "out")
    surgery.write(surgery.open_checkpoint(tmp_path / "out"), tmp_path / "copy")
    check_refused(tmp_path / "copy", tmp_path / "a", PlanError, what, str(tmp_path / "a"), "--again")
    merged(tmp_path / "copy", tmp_path / "a", tmp_path / "twice", again=True)
    trained(base, "llama", tmp_path / "b", seed=2, target_modules=["v_proj"])
    merged(tmp_path / "copy", tmp_path / "b", tmp_path / "both")


# Refusals


@pytest.mark.parametrize(
    "options",
    [{"target_modules": ["lm_head"]}, {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens"]}],
    ids=["LoRA on lm_head", "embed_tokens saved"],
)
def test_tied_error_refuses_one_of_two_tied_tensors(options: dict[str, Any], bases: Path, tmp_path: Path) -> None:
    base = base_of("llama-tied", bases / "llama-tied0")
    trained(base, "llama-tied", tmp_path / "a", **options)
    what = "the adapter changes one of two tied tensors, which would make them differ"
    check_refused(
        base,
        tmp_path / "a",
        NotSupported,
        what,
        "lm_head.weight",
        "tie_word_embeddings is true",
        "--tied error",
        tied="error",
    )
    check_refused(
        base, tmp_path / "a", SurgeryError, "`both` is no way to merge into tied tensors", "untie or error", tied="both"
    )
    trained(base, "llama-tied", tmp_path / "b", target_modules=["lm_head"], ensure_weight_tying=True)
    merged(base, tmp_path / "b", tmp_path / "out", tied="error")


def test_refuses_ties_that_the_table_does_not_have(bases: Path, tmp_path: Path) -> None:
    base = shutil.copytree(base_of("llama-tied", bases / "llama-tied0"), tmp_path / "base")
    trained(base, "llama-tied", tmp_path / "a", target_modules=["embed_tokens"])
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyForCausalLM"]}))
    what = "the adapter changes a tied tensor, and how its class keeps tied tensors apart is not known"
    check_refused(
        base,
        tmp_path / "a",
        NotSupported,
        what,
        "model.embed_tokens.weight",
        "['NobodyForCausalLM']",
        "untie the base first",
    )


def test_two_stored_tensors_that_differ_are_not_tied(bases: Path, tmp_path: Path) -> None:
    """A BERT that was untied keeps its flag: LoRA on its embedding is LoRA on that alone, and what PEFT saved along
    too.
    """
    base = base_of("bert-mlm", bases / "bert-mlm0")
    trained(base, "bert-mlm", tmp_path / "a", target_modules=["decoder"])
    merged(base, tmp_path / "a", tmp_path / "untied")
    live = trained(tmp_path / "untied", "bert-mlm", tmp_path / "b", seed=2, target_modules=["word_embeddings"])
    report = merged(tmp_path / "untied", tmp_path / "b", tmp_path / "out")
    assert not any("tied" in note for note in report.notes)
    compare_outputs(tmp_path / "out", live, tmp_path / "untied", "bert-mlm")


def test_refuses_a_bias_without_a_place(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"])
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    name = f"{PREFIX}model.layers.0.self_attn.v_proj"
    biases = {n.replace("weight", "bias"): torch.ones(20) for n in tensors if "lora_B" in n}
    save_file(tensors | biases, tmp_path / "a/adapter_model.safetensors")
    what = "adapter_config.json does not say lora_bias, but the module has one"
    check_refused(base, tmp_path / "a", AdapterError, what, f"{name}.lora_B.bias")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "lora_bias": True}))
    what = "the adapter has a bias, the base's module has none"
    check_refused(
        base, tmp_path / "a", NotSupported, what, f"{name}.lora_B.bias", "base: model.layers.0.self_attn.v_proj.bias"
    )


@pytest.mark.parametrize(
    ("said", "kind", "what"),
    [
        ([3, 3], AdapterError, "adapter_config.json does not say which tokens were trained in model.embed_tokens"),
        (None, AdapterError, "adapter_config.json does not say which tokens were trained in model.embed_tokens"),
        (
            {"lm_head": [3, 4]},
            AdapterError,
            "adapter_config.json does not say which tokens were trained in model.embed_tokens",
        ),
        ([3, 4, 5], AdapterError, "3 trained tokens of (2, 48) do not fit the base's (97, 48)"),
        ([3, 97], AdapterError, "2 trained tokens of (2, 48) do not fit the base's (97, 48)"),
    ],
)
def test_refuses_tokens_that_contradict_the_config(
    said: Any, kind: type[SurgeryError], what: str, bases: Path, tmp_path: Path
) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"], trainable_token_indices=[3, 4])
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "trainable_token_indices": said}))
    check_refused(base, tmp_path / "a", kind, what, "model.embed_tokens.token_adapter.trainable_tokens_delta")


def test_tokens_are_moved_and_nothing_is_computed(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama", bases / "llama0")
    trained(base, "llama", tmp_path / "a", target_modules=["v_proj"], trainable_token_indices=[9, 3])
    checkpoint = surgery.merge(
        surgery.open_checkpoint(base), surgery.open_adapter(tmp_path / "a"), only=".*embed_tokens"
    )
    plan = surgery.plan(checkpoint)
    assert plan.computed == () and plan.replaced == ("model.embed_tokens.weight",)
    old, new = (
        load_file(base / "model.safetensors")["model.embed_tokens.weight"],
        checkpoint.load("model.embed_tokens.weight"),
    )
    delta = load_file(tmp_path / "a/adapter_model.safetensors")[
        f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta"
    ]
    assert torch.equal(new, old.index_copy(0, torch.tensor([9, 3]), delta))


# Controls


@pytest.mark.parametrize("name", ["tied, embedding", "tied, tokens", "bert, biases", "t5, head"])
def test_mistakes_fail_the_comparison(name: str, bases: Path, tmp_path: Path) -> None:
    """A copy of the base, doubled scales, the other half of a tied pair: each is told from the live model."""
    case = CASES[name]
    base = base_of(case.family, bases / f"{case.family}0")
    live = trained(base, case.family, tmp_path / "a", **case.lora)
    merged(base, tmp_path / "a", tmp_path / "out")
    shutil.copytree(base, tmp_path / "copy")
    wrong = [tmp_path / "copy"]
    if name != "tied, tokens":
        merged(base, tmp_path / "a", tmp_path / "doubled", scale=2.0, except_=None) if name == "bert, biases" else None
        wrong += [tmp_path / "doubled"] if name == "bert, biases" else []
    if case.added:
        shutil.copytree(tmp_path / "out", tmp_path / "tied")
        tensors = load_file(tmp_path / "out/model.safetensors")
        names = [case.added[0], *(n for n in ("model.embed_tokens.weight", "shared.weight") if n in tensors)]
        tensors |= {names[0]: tensors[names[1]].clone()}
        save_file(tensors, tmp_path / "tied/model.safetensors", metadata={"format": "pt"})
        wrong.append(tmp_path / "tied")
    for folder in wrong:
        with pytest.raises(AssertionError, match="off by"):
            compare_outputs(folder, live, base, case.family)


# The command line


def test_the_command_has_the_options(bases: Path, tmp_path: Path) -> None:
    base = base_of("llama-tied", bases / "llama-tied0")
    trained(base, "llama-tied", tmp_path / "a", target_modules=["v_proj", "lm_head"])

    def run(out: str, *options: str) -> Any:
        return CliRunner().invoke(
            app, ["merge", str(base), str(tmp_path / "a"), "-o", str(tmp_path / out), "--json", *options]
        )

    assert run("error", "--tied", "error").exit_code == 1 and not (tmp_path / "error").exists()
    assert run("wrong", "--tied", "both").exit_code == 2
    found = run("out", "--only", ".*v_proj", "--except", r"model\.layers\.0\..*", "--scale", "0.5", "--tied", "error")
    assert found.exit_code == 0, found.output
    options = {"only": ".*v_proj", "except_": r"model\.layers\.0\..*", "scale": 0.5}
    merged(base, tmp_path / "a", tmp_path / "same", **options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "same")
    again = ["merge", str(tmp_path / "out"), str(tmp_path / "a"), "-o", str(tmp_path / "more")]
    assert CliRunner().invoke(app, again).exit_code == 1
    assert CliRunner().invoke(app, [*again, "--again"]).exit_code == 0
