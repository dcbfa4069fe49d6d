"""Everything that LoRA can be put on, judged by PEFT: its own injection with the same options has the same tensors,
and counts the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from models.fused import stacks
from safetensors.torch import load_file

import surgery
from surgery.errors import NothingMatched, NotSupported, PlanError, SurgeryError
from surgery.evaluation.evaluate import load
from surgery.models.families import EXPERT_TARGETS, GROUPED_CONVOLUTIONS, NOT_FROM_TEXT, ROUTERS
from surgery.surgeries.injecting.modules import Kind, told

TOWER = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 2, "num_attention_heads": 3}
BERT = {**TOWER, "vocab_size": 97, "max_position_embeddings": 32}
T5 = {
    "vocab_size": 97,
    "d_model": 24,
    "d_kv": 6,
    "d_ff": 30,
    "num_layers": 2,
    "num_heads": 3,
    "decoder_start_token_id": 1,
}
WHISPER = {
    **tiny_models.TEXT, "d_model": 36, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 50, "decoder_ffn_dim": 50, "num_mel_bins": 8, "max_source_positions": 12,
    "max_target_positions": 32,
    "decoder_start_token_id": 1,
}  # fmt: skip
RESNET = {"embedding_size": 12, "hidden_sizes": [12, 20], "depths": [2, 2], "layer_type": "basic", "num_labels": 5}
IDS = tiny_models.inputs("llama")["input_ids"]
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
MEL = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(4))

BUILDS: dict[str, Callable[[], Any]] = {
    **{kind: (lambda kind=kind: stacks.build(kind)) for kind in ("qwen3_moe", "mixtral", "gpt_oss", "granitemoe",
    "olmoe")},
    "wav2vec2": lambda: tf.Wav2Vec2Model(tf.Wav2Vec2Config(
        **TOWER, vocab_size=32, conv_dim=[8, 8], conv_stride=[5, 2], conv_kernel=[10, 3], num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, conv_bias=True,
    )),
    "llama4_text": lambda: stacks.build("llama4_text", intermediate_size_mlp=20, interleave_moe_layer_step=1),
    **{family: (lambda family=family: tiny_models.build(family)) for family in tiny_models.MODELS},
    "bert-mlm": lambda: tf.BertForMaskedLM(tf.BertConfig(**BERT)),
    "bert-cls": lambda: tf.BertForSequenceClassification(tf.BertConfig(**BERT, num_labels=4)),
    "xlmr-mlm": lambda: tf.XLMRobertaForMaskedLM(tf.XLMRobertaConfig(**BERT)),
    "xlmr-cls": lambda: tf.XLMRobertaForSequenceClassification(tf.XLMRobertaConfig(**BERT, num_labels=4)),
    "distilbert-cls": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(vocab_size=97, dim=12, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=32)
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**T5)),
    "whisper": lambda: tf.WhisperForConditionalGeneration(tf.WhisperConfig(**WHISPER)),
    "resnet": lambda: tf.ResNetForImageClassification(tf.ResNetConfig(**RESNET)),
    "squeezebert": lambda: tf.SqueezeBertModel(tf.SqueezeBertConfig(**{**BERT, "embedding_size": 36,
    "hidden_size": 36}, **dict.fromkeys(
        ("q_groups", "k_groups", "v_groups", "post_attention_groups", "intermediate_groups", "output_groups"), 2
    ))),
    "convnext": lambda: tf.ConvNextForImageClassification(tf.ConvNextConfig(hidden_sizes=[12, 16], depths=[1, 2],
    num_stages=2)),
    "vit": lambda: tf.ViTForImageClassification(tf.ViTConfig(**TOWER, image_size=32, patch_size=8)),
}  # fmt: skip


def build(family: str) -> Any:
    torch.manual_seed(0)
    return BUILDS[family]().eval()


def output(model: Any, family: str) -> torch.Tensor:
    with torch.no_grad():
        match family:
            case "resnet" | "convnext" | "vit":
                return model(pixel_values=PIXELS).logits
            case "whisper":
                return model(input_features=MEL, decoder_input_ids=IDS).logits
            case "t5":
                return model(input_ids=IDS, decoder_input_ids=IDS).logits
            case "wav2vec2":
                return model(MEL.reshape(2, -1)).last_hidden_state
            case "squeezebert":
                return model(input_ids=IDS).last_hidden_state
        return tiny_models.output(model, family)


@dataclass(frozen=True)
class Case:
    """A family, and options as both call them; `task` is what a user would tell PEFT, and surgery knows from the
    class.
    """

    family: str
    lora: Mapping[str, Any] = field(default_factory=dict)
    task: str | None = None
    check: bool = False


EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
ON_EXPERTS = {"target_parameters": EXPERTS, "target_modules": []}
PATTERNS = {
    "rank_pattern": {r"layers\.1\.mlp\.experts\.down_proj": 5, "gate_up_proj": 2},
    "alpha_pattern": {"experts.down_proj": 3},
}
CASES = {
    "experts, one file each": Case("qwen3_moe", ON_EXPERTS),
    "experts under other names": Case("mixtral", {**ON_EXPERTS, **PATTERNS}),
    "experts stored at once": Case("granitemoe", ON_EXPERTS),
    "experts (in, out)": Case("gpt_oss", ON_EXPERTS),
    "experts (in, out), not told so": Case("llama4_text", ON_EXPERTS),
    "experts, gate and up alone": Case("olmoe", {"target_parameters": EXPERTS[:1], "target_modules": []}),
    "experts, router and attention": Case(
        "qwen3_moe",
        {"target_parameters": [*EXPERTS, "mlp.gate.weight"], "target_modules": ["q_proj"], "use_rslora": True},
    ),
    "biases of experts": Case(
        "gpt_oss", {"target_parameters": [*EXPERTS, "experts.down_proj_bias"], "target_modules": []}
    ),
    "all-linear, experts": Case("mixtral", {"target_modules": "all-linear"}),
    "all-linear, experts, asked": Case("qwen3_moe", {"target_modules": "all-linear"}, check=True),
    "names of experts in files": Case("mixtral", {"target_modules": ["w1", "w2", "w3", "q_proj"]}),
    "names of experts, regex": Case("qwen3_moe", {"target_modules": r".*layers\.1.*(?:gate_proj|up_proj|v_proj)"}),
    "all-linear, other experts": Case("granitemoe", {"target_modules": "all-linear"}),
    "all-linear, gpt_oss": Case("gpt_oss", {"target_modules": "all-linear"}),
    "all-linear, tied decoder that is not stored": Case("bert-mlm", {"target_modules": "all-linear"}),
    "tied decoder that is not stored": Case("bert-mlm", {"target_modules": ["decoder", "query"]}),
    "all-linear, classifier": Case("bert-cls", {"target_modules": "all-linear"}, "SEQ_CLS"),
    "all-linear, vit": Case("vit", {"target_modules": "all-linear"}),
    "all-linear, sam": Case("sam", {"target_modules": "all-linear"}),
    "all-linear, sam, asked": Case("sam", {"target_modules": "all-linear"}, check=True),
    "all-linear, t5": Case("t5", {"target_modules": "all-linear"}, "SEQ_2_SEQ_LM"),
    "t5, head and embedding": Case("t5", {"target_modules": ["lm_head", "shared", "q"]}, "SEQ_2_SEQ_LM"),
    "all-linear, whisper": Case("whisper", {"target_modules": "all-linear"}),
    "all-linear, neox": Case("gpt_neox", {"target_modules": "all-linear"}),
    "all-linear, gpt2": Case("gpt2", {"target_modules": "all-linear"}),
    "tied head": Case("llama-tied", {"target_modules": ["lm_head", "q_proj"]}),
    "tied head saved": Case("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "saved is not targeted": Case("llama", {"target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}),
    "a head of many modules saved": Case("xlmr-mlm", {"target_modules": ["query"], "modules_to_save": ["lm_head"]}),
    "a classifier of many modules saved": Case(
        "xlmr-cls", {"target_modules": ["query", "dense"], "modules_to_save": ["classifier"]}
    ),
    "a classifier of many modules saved by its task": Case("xlmr-cls", {"target_modules": ["query"]}, "SEQ_CLS"),
    "a layer saved": Case("llama", {"target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}),
    "convolutions": Case("resnet", {"target_modules": ["convolution"]}),
    "convolutions, gaussian": Case(
        "resnet", {"target_modules": ["convolution", "classifier.1"], "init_lora_weights": "gaussian"}
    ),
    "convolutions, dora": Case("resnet", {"target_modules": ["convolution"], "use_dora": True}),
    "one axis": Case("wav2vec2", {"target_modules": r".*conv_layers\.1\.conv|.*q_proj", "lora_bias": True}),
    "one axis and one channel, asked": Case("wav2vec2", {"target_modules": ["conv", "q_proj"]}, check=True),
    "patches": Case("sam", {"target_modules": ["projection", "qkv"]}),
    "in groups, asked": Case("squeezebert", {"target_modules": ["conv1d", "query"]}, check=True),
    "depthwise, asked": Case(
        "convnext", {"target_modules": ["dwconv", "pwconv1"], "rank_pattern": {"dwconv": 48}}, check=True
    ),
    "layers": Case("llama", {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]}),
    "layers by pattern": Case(
        "gpt2", {"target_modules": ["c_attn"], "layers_to_transform": [1], "layers_pattern": ["h"]}
    ),
    "layers, inner experts' numbers": Case("mixtral", {"target_modules": ["v_proj"], "layers_to_transform": [1]}),
}


def injected(case: Case, folder: Path) -> surgery.Adapter:
    build(case.family).save_pretrained(folder / "base")
    options = dict(case.lora)
    init = options.pop("init_lora_weights", "uniform")
    return surgery.inject(
        surgery.open_checkpoint(folder / "base"), rank=4, alpha=8, init=init, check_class=case.check, **options
    )


@pytest.mark.parametrize("name", CASES)
def test_as_pefts_own_injection(name: str, tmp_path: Path) -> None:
    """It loads whole and changes nothing; the trainable parameters have the names, shapes and number of PEFT's own."""
    case = CASES[name]
    adapter = injected(case, tmp_path)
    report = surgery.write(adapter, tmp_path / "adapter")
    before = output(build(case.family), case.family)
    live = peft.PeftModel.from_pretrained(build(case.family), tmp_path / "adapter", is_trainable=True).eval()
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    loaded = peft.get_peft_model_state_dict(live, save_embedding_layers=False)
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in stored.items())
    after = output(live, case.family)
    if case.lora.get("use_dora"):  # PEFT divides the magnitudes by norms that it computes anew
        assert (after - before).abs().max() < 1e-5 * before.abs().max()
    else:
        assert torch.equal(after, before)
    own = peft.get_peft_model(build(case.family), peft.LoraConfig(r=4, lora_alpha=8, task_type=case.task, **case.lora))
    assert trainable(live) == trainable(own)
    mine, every = own.get_nb_trainable_parameters()
    assert (
        report.notes[-1]
        == f"trainable params: {mine:,} || all params: {every:,} || trainable%: {100 * mine / every:.4f}"
    )


def trainable(model: Any) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_what_peft_saves_by_the_end_of_its_name_is_no_target(tmp_path: Path) -> None:
    """PEFT cannot load LoRA on `pre_classifier`, which it saves because its name ends in `classifier`; with all
    else, it does.
    """
    adapter = injected(Case("distilbert-cls", {"target_modules": "all-linear"}), tmp_path)
    said = "pre_classifier copied, without LoRA: PEFT saves every module whose name ends in classifier or score"
    assert said in adapter.notes and "pre_classifier" not in adapter.lora
    surgery.write(adapter, tmp_path / "adapter")
    before = output(build("distilbert-cls"), "distilbert-cls")
    live = peft.PeftModel.from_pretrained(build("distilbert-cls"), tmp_path / "adapter", is_trainable=True).eval()
    assert torch.equal(output(live, "distilbert-cls"), before)
    lora = peft.LoraConfig(r=4, task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=["pre_classifier"])
    assert trainable(live) == trainable(peft.get_peft_model(build("distilbert-cls"), lora))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert peft.get_peft_model_state_dict(live).keys() == stored.keys()


def test_it_says_what_it_is_on_and_how_it_knows(tmp_path: Path) -> None:
    told = injected(Case("resnet", {"target_modules": ["convolution", "classifier.1"]}), tmp_path)
    assert (
        "LoRA on 1 × Linear, 10 × convolution: by config.json, names and shapes; --check-class asks the class"
        in told.notes
    )
    base = surgery.open_checkpoint(tmp_path / "base")
    asked = surgery.inject(base, ["convolution", "classifier.1"], check_class=True)
    assert "LoRA on 1 × Linear, 10 × convolution: as ResNetForImageClassification says" in asked.notes
    assert asked.notes[-1] == surgery.inject(base, ["convolution", "classifier.1"]).notes[-1]
    assert {n: t.shape for n, t in told.tensors.items()} == {
        n: t.shape
        for n, t in surgery.inject(base, ["convolution", "classifier.1"], rank=4, check_class=True).tensors.items()
    }


def test_the_numbers_of_a_convolution_are_drawn_as_pefts(tmp_path: Path) -> None:
    """A is uniform within 1 / √(in · kernel), as nn.Conv2d; on experts, within 1 / √in, as nn.Linear."""
    adapter = injected(
        Case("resnet", {"target_modules": ["convolution"], "rank_pattern": {"convolution": 32}}), tmp_path / "a"
    )
    for module, parts in adapter.lora.items():
        a = load(parts["lora_A.weight"])
        bound = a[0].numel() ** -0.5
        assert 0.95 * bound < a.abs().max() <= bound, module
    experts = injected(Case("qwen3_moe", ON_EXPERTS), tmp_path / "b")
    for parts in experts.lora.values():
        a = load(parts["lora_A.weight"])
        assert 0.9 * a.shape[1] ** -0.5 < a.abs().max() <= a.shape[1] ** -0.5


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "llama4_text", "mixtral", "bert-mlm", "t5", "llama-tied"])
def test_merged_untrained_it_is_nothing(family: str, tmp_path: Path) -> None:
    """What was injected merges, and leaves every tensor as it was."""
    lora = (
        ON_EXPERTS if family in ("qwen3_moe", "gpt_oss", "llama4_text", "mixtral") else {"target_modules": "all-linear"}
    )
    adapter = injected(Case(family, lora), tmp_path)
    base = surgery.open_checkpoint(tmp_path / "base")
    surgery.write(surgery.merge(base, adapter), tmp_path / "merged")
    before, after = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "merged"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# Refusals


def check_refused(
    options: Mapping[str, Any], kind: type[SurgeryError], what: str, tip: str, base: surgery.Checkpoint
) -> None:
    with pytest.raises(kind, match=re.escape(what)) as error:
        surgery.inject(base, **options)
    assert error.value.help and tip in error.value.help


REFUSED: list[tuple[str, dict[str, Any], type[SurgeryError], str, str]] = [
    (
        "convnext",
        {"target_modules": ["dwconv"]},
        NotSupported,
        "whether these convolutions are grouped",
        "--check-class",
    ),
    (
        "convnext",
        {"target_modules": ["dwconv"], "check_class": True},
        NotSupported,
        "a multiple of its groups",
        "another rank",
    ),
    (
        "squeezebert",
        {"target_modules": ["query"]},
        NotSupported,
        "whether these convolutions are grouped",
        "--check-class",
    ),
    (
        "wav2vec2",
        {"target_modules": r".*pos_conv_embed\.conv"},
        NotSupported,
        "whether these convolutions are grouped",
        "--check-class",
    ),
    (
        "wav2vec2",
        {"target_modules": r".*pos_conv_embed\.conv", "use_dora": True, "check_class": True},
        NotSupported,
        "DoRA needs the norms of weights that the base does not store as they are",
        "leave these modules out",
    ),
    (
        "mixtral",
        {"target_modules": ["w1"]},
        NotSupported,
        "w1 and w3 are one parameter of all experts",
        "experts.gate_up_proj",
    ),
    ("gpt_oss", {"target_modules": ["router"]}, NotSupported, "LoRA cannot be put on a router", "--target-parameters"),
    (
        "gpt_oss",
        {"target_modules": ["router"], "check_class": True},
        NotSupported,
        "cannot be put on GptOssTopKRouter",
        "--exclude",
    ),
    (
        "mixtral",
        {"target_parameters": ["zzz"]},
        NothingMatched,
        "1 of 1 target parameters are nowhere",
        "they end such as",
    ),
    (
        "mixtral",
        {"target_parameters": ["experts.gate_proj"]},
        NothingMatched,
        "are nowhere in the base",
        "experts.gate_up_proj",
    ),
    (
        "mixtral",
        {"target_parameters": ["norm.weight"]},
        NotSupported,
        "neither experts in a layout that is known",
        "name others",
    ),
    (
        "mixtral",
        {"target_parameters": EXPERTS, "use_dora": True},
        SurgeryError,
        "goes without use_dora",
        "two adapters",
    ),
    (
        "mixtral",
        {"target_parameters": EXPERTS, "lora_bias": True},
        SurgeryError,
        "goes without lora_bias",
        "two adapters",
    ),
    (
        "mixtral",
        {"target_parameters": ["q_proj.weight"], "target_modules": ["q_proj"]},
        NotSupported,
        "on a module or on its parameter, not on both",
        "one of the two",
    ),
    (
        "gpt2",
        {"target_parameters": ["wte.weight"], "target_modules": ["c_attn"]},
        NotSupported,
        "without LoRA on Conv1D",
        "two adapters",
    ),
    (
        "llama",
        {"target_modules": ["embed_tokens"], "lora_bias": True},
        NotSupported,
        "an embedding goes without lora_bias",
        "leave",
    ),
    (
        "llama",
        {"target_modules": ["q_proj"], "rank_pattern": {"q_proj": 0}},
        SurgeryError,
        "a rank of 0 is none",
        "1 or more",
    ),
    (
        "llama",
        {"target_modules": ["q_proj"], "alpha_pattern": {"q_proj": -1}},
        SurgeryError,
        "an alpha of -1 scales nothing",
        "above 0",
    ),
    (
        "llama",
        {"target_modules": ["q_proj"], "rank_pattern": {"(": 2}},
        SurgeryError,
        "is not a regular expression",
        "literal",
    ),
    (
        "llama",
        {"target_modules": ["q_proj"], "layers_pattern": ["layers"]},
        SurgeryError,
        "no layers are given",
        "--layers-to-transform",
    ),
    ("phi3", {}, SurgeryError, "nothing is targeted", "--target-modules"),
    (
        "distilbert-cls",
        {"target_modules": ["q_lin", "pre_classifier"]},
        NotSupported,
        (
            "a module cannot be a target and be saved whole: PEFT saves every module whose name ends in classifier or"
            " score"
        ),
        "--exclude-modules pre_classifier",
    ),
    (
        "mixtral",
        {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
        NotSupported,
        "cannot copy experts",
        "--modules-to-save",
    ),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, surgery.Checkpoint]:
    root = tmp_path_factory.mktemp("bases")
    for family in dict.fromkeys(family for family, *_ in REFUSED):
        build(family).save_pretrained(root / family)
    return {folder.name: surgery.open_checkpoint(folder) for folder in root.iterdir()}


@pytest.mark.parametrize(("family", "options", "kind", "what", "tip"), REFUSED)
def test_refusals(
    family: str,
    options: dict[str, Any],
    kind: type[SurgeryError],
    what: str,
    tip: str,
    bases: dict[str, surgery.Checkpoint],
) -> None:
    check_refused(options, kind, what, tip, bases[family])


def test_a_class_that_contradicts_the_files(bases: dict[str, surgery.Checkpoint]) -> None:
    base = bases["llama"]
    wrong = base.with_config({**base.config, "intermediate_size": 79})
    options = {"target_modules": ["q_proj"], "check_class": True}
    check_refused(options, PlanError, "LlamaForCausalLM and the files contradict each other", "restore", wrong)
    nameless = base.with_config({k: v for k, v in base.config.items() if k != "architectures"})
    check_refused(options, PlanError, "config.json names no class", "--check-class", nameless)


# What names tell, against the classes


def kinds_of(model: Any) -> dict[str, str]:
    from transformers.pytorch_utils import Conv1D

    known = {torch.nn.Linear: "Linear", Conv1D: "Conv1D", torch.nn.Embedding: "Embedding"}
    known |= dict.fromkeys((torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d), "convolution")
    found = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor) and module.weight.dim() > 1:
            found[name] = next((text for kind, text in known.items() if isinstance(module, kind)), "other")
    return found


@pytest.mark.parametrize("family", [family for family in BUILDS if family != "convnext"])
def test_names_and_shapes_tell_what_the_class_is_made_of(family: str, tmp_path: Path) -> None:
    model = build(family)
    model.save_pretrained(tmp_path / "base")
    base = surgery.open_checkpoint(tmp_path / "base")
    found = {
        name: module for name, module in told(base).items() if not module.what.endswith(("of a stack", "of experts"))
    }
    assert {name: module.kind.value for name, module in found.items()} == kinds_of(model)
    head = model.get_output_embeddings()
    named = {name for name, module in model.named_modules() if head is not None and module is head}
    linear = {name for name, module in found.items() if module.head and module.kind is Kind.LINEAR}
    assert linear == named


def test_the_names_that_peft_takes_for_parameters() -> None:
    """The table is PEFT's own, by model type."""
    from peft.utils import transformers_weight_conversion as theirs
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    found = {}
    for kind in CONFIG_MAPPING_NAMES:
        names = theirs._MOE_TARGET_MODULE_MAPPING.get(theirs._MODEL_TO_CONVERSION_PATTERN.get(kind, ""))
        if names and get_checkpoint_conversion_mapping(kind) is not None:
            found[kind] = names
    assert found == EXPERT_TARGETS


def test_the_types_that_the_tables_name() -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES as SPEECH

    assert NOT_FROM_TEXT | GROUPED_CONVOLUTIONS | ROUTERS["gate"] | ROUTERS["router"] <= set(CONFIG_MAPPING_NAMES)
    named = {
        **SPEECH,
        "pix2struct": "Pix2StructForConditionalGeneration",
        "pp_formulanet": "PPFormulaNetForConditionalGeneration",
    }
    classes = {kind: name for kind, name in named.items() if str(name).endswith("ForConditionalGeneration")}
    assert {kind for kind, name in classes.items() if getattr(tf, name).main_input_name != "input_ids"} >= NOT_FROM_TEXT


ODD = {
    "mamba": lambda: tf.MambaForCausalLM(tf.MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=20)),
    "regnet": lambda: tf.RegNetForImageClassification(
        tf.RegNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], groups_width=4)
    ),
    "electra": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**BERT, embedding_size=12)),
    "albert": lambda: tf.AlbertForMaskedLM(tf.AlbertConfig(**BERT, embedding_size=12)),
    "xlnet": lambda: tf.XLNetLMHeadModel(tf.XLNetConfig(vocab_size=20, d_model=12, n_layer=1, n_head=2, d_inner=8)),
    "modernbert": lambda: tf.ModernBertForMaskedLM(tf.ModernBertConfig(**{**BERT, "pad_token_id": 0})),
    "distilbert": lambda: tf.DistilBertForMaskedLM(tf.DistilBertConfig(vocab_size=20, dim=12, n_layers=1, n_heads=2,
    hidden_dim=8)),
    "roberta": lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**BERT)),
    "speecht5": lambda: tf.SpeechT5ForSpeechToText(tf.SpeechT5Config(
        hidden_size=12, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
        vocab_size=20,
        num_conv_pos_embedding_groups=2,
    )),
    "decision_transformer": lambda: tf.DecisionTransformerModel(tf.DecisionTransformerConfig(n_layer=1, hidden_size=12,
    n_head=2)),
    "ctrl": lambda: tf.CTRLLMHeadModel(tf.CTRLConfig(vocab_size=20, n_embd=12, n_layer=1, n_head=2, dff=8,
    n_positions=8)),
    "convnextv2": lambda: tf.ConvNextV2Model(tf.ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)),
    "jamba": lambda: stacks.build("jamba"),
    "deepseek_v3": lambda: stacks.build("deepseek_v3", first_k_dense_replace=0, n_group=1, topk_group=1, q_lora_rank=8,
    kv_lora_rank=8),
}  # fmt: skip


@pytest.mark.parametrize("family", ODD)
def test_names_that_are_not_what_they_look_like(family: str, tmp_path: Path) -> None:
    """What names tell is what the class is made of, or is not told, and the head is the class's."""
    model = ODD[family]()
    model.save_pretrained(tmp_path / "base")
    found = {
        n: m
        for n, m in told(surgery.open_checkpoint(tmp_path / "base")).items()
        if not m.what.endswith(("of a stack", "of experts"))
    }
    theirs = kinds_of(model)
    unlike = {n: (m.kind.value, theirs[n]) for n, m in found.items() if n in theirs and m.kind.value != theirs[n]}
    assert unlike == (
        {} if family != "convnextv2" else {n: ("convolution", "other") for n in found if n.endswith("grn")}
    )
    groups = {n: m.groups for n, m in model.named_modules() if isinstance(m, torch.nn.Conv1d | torch.nn.Conv2d)}
    assert all(found[n].groups in (0, groups[n]) for n in found.keys() & groups.keys())
    head = model.get_output_embeddings()
    named = {n for n, m in model.named_modules() if head is not None and m is head}
    stored = {
        n for n in named if n in found
    }  # a tied head is not, in classes of which surgery does not know what they tie
    assert {n for n, m in found.items() if m.head and m.kind is Kind.LINEAR} == stored
