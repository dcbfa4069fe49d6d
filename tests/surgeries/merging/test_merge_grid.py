"""The grid: what adapters can ask for × families of models. What is merged computes what PEFT's live adapted model
computes.

Every option meets every family that can have it. Bases are sharded so that layers straddle shards; the live model
has the adapter as PEFT loads it from the file; the merged checkpoint is loaded by its class. An adapter's effect on
the output is at least ten thousand times the error. Controls show that the comparison fails where the merge is
wrong.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
import transformers as tf
from models.fused import stacks
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import surgery

EPS = torch.finfo(torch.float32).eps
IDS = tiny_models.inputs("llama")["input_ids"]
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(4))
MEL = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(4))
TOKENS = [90, 5, 6, 40, 0]
TOWER = {"hidden_size": 36, "intermediate_size": 50, "num_hidden_layers": 3, "num_attention_heads": 3}
IMAGE = {"image_size": 32, "patch_size": 8}


def clip() -> Any:
    text = {
        **TOWER,
        "vocab_size": 97,
        "max_position_embeddings": 32,
        "eos_token_id": 2,
        "bos_token_id": 1,
        "pad_token_id": 0,
    }
    return tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config={**TOWER, **IMAGE}, projection_dim=20))


def whisper() -> Any:
    sizes = {
        "d_model": 36,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 3,
        "decoder_attention_heads": 3,
    }
    more = {
        "encoder_ffn_dim": 50,
        "decoder_ffn_dim": 50,
        "num_mel_bins": 8,
        "max_source_positions": 12,
        "max_target_positions": 32,
    }
    return tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(**tiny_models.TEXT, **sizes, **more, decoder_start_token_id=1)
    )


def resnet() -> Any:
    sizes = {"embedding_size": 12, "hidden_sizes": [12, 20], "depths": [2, 2], "layer_type": "basic", "num_labels": 5}
    return tf.ResNetForImageClassification(tf.ResNetConfig(**sizes))


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


def answers(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).start_logits


def translated(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, decoder_input_ids=IDS.flip(1)).logits


def heard(model: Any) -> torch.Tensor:
    return model(input_features=MEL, decoder_input_ids=IDS).logits


def seen(model: Any) -> torch.Tensor:
    return model(pixel_values=PIXELS).logits


def matched(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, pixel_values=PIXELS).logits_per_image


@dataclass(frozen=True)
class Family:
    """A model, what is compared of it, and the names that options are put on: some are linear, one an embedding,
    some saved whole.

    `biased` modules have biases; `parameters` can be targeted as such; `grows` where PEFT saves a vocabulary that
    was resized.
    """

    build: Callable[[], Any]
    run: Callable[[Any], torch.Tensor]
    linears: tuple[str, ...]
    saved: tuple[str, ...]
    embedding: str = ""
    biased: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    grows: bool = True
    convolutions: tuple[str, ...] = ()


ATTENTION = ("q_proj", "v_proj", "o_proj")
EXPERTS = ("experts.gate_up_proj", "experts.down_proj")
DEEPSEEK = {
    "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 0, "n_shared_experts": 1, "head_dim": 4,
}  # fmt: skip
SHARED = {"shared_expert_intermediate_size": 8, "decoder_sparse_step": 1}
FAMILIES: dict[str, Family] = {
    "llama": Family(tiny_models.MODELS["llama"], logits, (*ATTENTION, "down_proj"), ("lm_head", "norm"),
    "embed_tokens"),
    "llama-tied": Family(tiny_models.MODELS["llama-tied"], logits, (*ATTENTION, "up_proj"), ("lm_head",),
    "embed_tokens"),
    "gpt2": Family(
        tiny_models.MODELS["gpt2"], logits, ("c_attn", "c_proj", "c_fc"), ("ln_f",), "wte", ("c_attn", "c_fc"),
        ("mlp.c_proj.weight",)
    ),
    "bert": Family(
        tiny_models.MODELS["bert"],
        answers,
        ("query", "value", "dense"),
        ("qa_outputs",),
        "word_embeddings",
        ("query", "dense"),
        grows=False,
    ),
    "t5": Family(
        lambda: tf.T5ForConditionalGeneration(tf.T5Config(vocab_size=97, d_model=36, d_kv=8, d_ff=50, num_layers=3,
        num_heads=3)),
        translated, ("q", "v", "wo"), ("lm_head",), "embed_tokens",
    ),
    "clip": Family(
        clip, matched, ("q_proj", "v_proj", "fc1"), ("visual_projection", "text_projection"), "token_embedding",
        ("q_proj", "fc1"),
        grows=False,
    ),
    "vit": Family(
        lambda: tf.ViTForImageClassification(tf.ViTConfig(**TOWER, **IMAGE, num_labels=5)),
        seen, ("q_proj", "v_proj", "fc1"), ("classifier",), biased=("q_proj", "fc1"), parameters=("o_proj.weight",),
    ),
    "whisper": Family(whisper, heard, ("q_proj", "v_proj", "fc2"), ("layer_norm",), "embed_tokens", ("q_proj", "fc2"),
    grows=False),
    "phi3": Family(tiny_models.MODELS["phi3"], logits, ("qkv_proj", "gate_up_proj"), ("lm_head",), "embed_tokens", (),
    ("o_proj.weight",)),
    "gpt_neox": Family(
        tiny_models.MODELS["gpt_neox"], logits, ("query_key_value", "dense"), ("lm_head",), "embed_in",
        ("query_key_value",)
    ),
    "bloom": Family(
        tiny_models.MODELS["bloom"], logits, ("query_key_value", "dense"), ("ln_f",), "word_embeddings",
        ("query_key_value", "dense")
    ),
    "mixtral": Family(lambda: stacks.build("mixtral"), logits, ATTENTION, ("lm_head",), "embed_tokens", (), EXPERTS),
    "qwen2_moe": Family(
        lambda: stacks.build("qwen2_moe", **SHARED), logits, ATTENTION, ("lm_head",), "embed_tokens", ("q_proj",
        "v_proj"), EXPERTS
    ),
    "resnet": Family(resnet, seen, ("classifier.1",), ("normalization",), convolutions=("convolution",)),
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """LoraConfig's options, and how the adapter is made and merged: the base resized, saved in bfloat16, a second
    one with weights.
    """

    lora: Mapping[str, Any]
    resize: int = 0
    dtype: torch.dtype = torch.float32
    weights: tuple[float, ...] = (1.0,)


def patterns(family: Family) -> dict[str, Any]:
    first, last = family.linears[0], family.linears[-1]
    return {"rank_pattern": {first: 2, rf".*\.2\..*{last}": 5}, "alpha_pattern": {last: 11, rf".*\.1\..*{first}": 3.5}}


# What is asked of a family; None where it has nothing to ask it of.
OPTIONS: dict[str, Callable[[Family], Asked | None]] = {
    "plain": lambda f: Asked({"target_modules": f.linears}),
    "rslora, patterns": lambda f: Asked({"target_modules": f.linears, "use_rslora": True, **patterns(f)}),
    "dora": lambda f: Asked({"target_modules": f.linears, "use_dora": True}),
    "lora_bias": lambda f: Asked({"target_modules": f.biased, "lora_bias": True}) if f.biased else None,
    "bias all": lambda f: Asked({"target_modules": f.linears, "bias": "all"}) if f.biased else None,
    "bias lora_only": lambda f: Asked({"target_modules": f.linears, "bias": "lora_only"}) if f.biased else None,
    "embedding": lambda f: Asked({"target_modules": (f.embedding, f.linears[0])}) if f.embedding else None,
    "saved": lambda f: Asked({"target_modules": f.linears[:1], "modules_to_save": f.saved}),
    "tokens": lambda f: (
        Asked({"target_modules": f.linears, "trainable_token_indices": {f.embedding: TOKENS}}) if f.embedding else None
    ),
    "resized": lambda f: Asked({"target_modules": f.linears}, resize=100) if f.embedding and f.grows else None,
    "some layers": lambda f: (
        Asked({"target_modules": f.linears, "layers_to_transform": [1]}) if not f.convolutions else None
    ),
    "parameters": lambda f: Asked({"target_modules": (), "target_parameters": f.parameters}) if f.parameters else None,
    "bfloat16": lambda f: Asked({"target_modules": f.linears}, dtype=torch.bfloat16),
    "two, weighted": lambda f: Asked({"target_modules": f.linears, "use_rslora": True}, weights=(0.7, -1.3)),
    "convolutions": lambda f: Asked({"target_modules": (*f.convolutions, *f.linears)}) if f.convolutions else None,
    "convolutions, dora": lambda f: (
        Asked({"target_modules": f.convolutions, "use_dora": True}) if f.convolutions else None
    ),
    "convolutions, patterns": lambda f: (
        Asked({"target_modules": f.convolutions, "use_rslora": True, "rank_pattern": {r".*shortcut\.convolution": 2}})
        if f.convolutions
        else None
    ),
}
# What belongs to one family.
WHOLE_NAMES = {
    "target_modules": "all-linear",
    "rank_pattern": {"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 3, "^model.layers.2.mlp.up_proj": 7},
    "alpha_pattern": {"k_proj|gate_proj": 3, r".*\.2\.self_attn\.(q|o)_proj": 20.5, "model.layers.0.mlp.down_proj": 1},
}
MORE = {
    ("llama", "all linears"): Asked({"target_modules": "all-linear", "lora_alpha": 3}),
    ("llama", "head"): Asked({"target_modules": ("v_proj", "lm_head")}),
    ("llama", "patterns of whole names"): Asked(WHOLE_NAMES),
    ("llama", "patterns of whole names, rslora"): Asked({**WHOLE_NAMES, "use_rslora": True}),
    ("gpt2", "square"): Asked({"target_modules": ("attn.c_proj",)}),
    ("gpt_neox", "head"): Asked({"target_modules": ("query_key_value", "lm_head")}),
    ("phi3", "square"): Asked({"target_modules": ("o_proj",), "task_type": "CAUSAL_LM"}),
}
CASES = {
    (family, option): asked for family, f in FAMILIES.items() for option, of in OPTIONS.items() if (asked := of(f))
} | MORE


@cache
def model_of(family: str) -> Any:
    """The family's model, every parameter random; never changed."""
    return stacks.random(FAMILIES[family].build())


@cache
def before(family: str) -> torch.Tensor:
    """What the base computes."""
    return output(family, model_of(family))


def output(family: str, model: Any) -> torch.Tensor:
    with torch.no_grad():
        return FAMILIES[family].run(model.eval()).float()


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """base(family) -> its checkpoint, of which layers straddle shards; the same folder at each call, which nothing
    writes to.
    """
    folder = tmp_path_factory.mktemp("bases")

    def get(family: str) -> Path:
        if not (folder / family).exists():
            model_of(family).save_pretrained(folder / family, max_shard_size="20KB")
            layers: dict[str, set[str]] = {}
            for name, shard in json.loads((folder / family / "model.safetensors.index.json").read_text())[
                "weight_map"
            ].items():
                layers.setdefault(re.split(r"(?<=\.\d)\.", name)[0], set()).add(shard)
            assert max(map(len, layers.values())) > 1, "no layer straddles two shards"
        return folder / family

    return get


def adapted(family: str, base: Path, folder: Path, asked: Asked) -> torch.Tensor:
    """Adapters of random factors in `folder`, one for each weight; what PEFT computes live with them, loaded from
    there.
    """
    for number, _ in enumerate(asked.weights):
        model = peft.get_peft_model(fresh(family, base, asked), config_of(asked, number))
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "magnitude" in name:
                    parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
                elif parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
                    parameter.copy_(parameter.to(asked.dtype))
        model.save_pretrained(folder / str(number))
        check_asked(model.peft_config["default"], folder / str(number))
        if asked.dtype != torch.float32:
            file = folder / str(number) / "adapter_model.safetensors"
            save_file(
                {name: tensor.to(asked.dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"}
            )
    return output(family, live(fresh(family, base, asked), folder, asked))


def check_asked(config: peft.LoraConfig, folder: Path) -> None:
    """Each name that was aimed at is in the file: PEFT passes over those that it does not find."""
    names = [*config.target_modules, *(config.modules_to_save or ()), *(config.trainable_token_indices or {})]
    names += [name.rpartition(".")[0] for name in config.target_parameters or ()]
    stored = load_file(folder / "adapter_model.safetensors")
    assert not [name for name in names if not any(f".{name}." in key for key in stored)]


def config_of(asked: Asked, number: int) -> peft.LoraConfig:
    """The config of the adapter with that number: a second one has another rank, and less to aim at."""
    lora = {key: list(value) if isinstance(value, tuple) else value for key, value in asked.lora.items()}
    more = {"r": 3, "target_modules": lora["target_modules"][:2]} if number else {}
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **lora, **more})


def fresh(family: str, base: Path, asked: Asked) -> Any:
    """The model as it is loaded from `base`, whose config PEFT compares the vocabulary's size with, and resized."""
    model = copy.deepcopy(model_of(family))
    model.name_or_path = str(base)
    if asked.resize:
        torch.manual_seed(5)
        model.resize_token_embeddings(asked.resize)
    return model


def live(model: Any, folder: Path, asked: Asked) -> Any:
    """The model with the adapters of `folder` beside its layers: nothing is merged."""
    model = peft.PeftModel.from_pretrained(model, folder / "0", "0")
    names = [str(number) for number, _ in enumerate(asked.weights)]
    if len(names) > 1:
        for name in names[1:]:
            model.load_adapter(folder / name, name)
        for layer in (module for module in model.modules() if isinstance(module, LoraLayer)):
            for name, weight in zip(names, asked.weights, strict=True):
                layer.set_scale(name, weight)
        model.base_model.set_adapter(names)
    return model


def merged(base: Path, folder: Path, asked: Asked) -> Path:
    adapters = [surgery.open_adapter(folder / str(number)) for number, _ in enumerate(asked.weights)]
    surgery.write(surgery.merge(surgery.open_checkpoint(base), adapters, asked.weights), folder / "out")
    return folder / "out"


def check(family: str, path: Path, wanted: torch.Tensor) -> None:
    """The checkpoint loads whole and computes what is wanted, from which its base is far."""
    loaded, info = type(model_of(family)).from_pretrained(path, output_loading_info=True)
    assert not any(info.values()), info
    compare(output(family, loaded), wanted, before(family))


def compare(made: torch.Tensor, wanted: torch.Tensor, before: torch.Tensor) -> None:
    """What is made is what is wanted, and what was before is far from it; of a resized vocabulary, in the words of
    both.
    """
    effect = (wanted[..., : before.shape[-1]] - before[..., : wanted.shape[-1]]).abs().max().item()
    error = (made - wanted).abs().max().item()
    assert effect >= 1000 * EPS * wanted.abs().max().item(), f"an effect of {effect} proves nothing"
    assert error <= effect / 10_000, f"off by {error}, where the adapter's effect is {effect}"


@pytest.mark.parametrize(("family", "option"), CASES, ids=map(" × ".join, CASES))
def test_merged_computes_what_the_live_model_computes(
    family: str, option: str, base: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = CASES[family, option]
    wanted = adapted(family, base(family), tmp_path, asked)
    check(family, merged(base(family), tmp_path, asked), wanted)


# What PEFT's live model is not asked

# Modules whose adapters PEFT drops or cannot place in transformers' classes, which hold experts in one tensor, by
# their names in files.
BY_HAND: dict[str, tuple[Mapping[str, Any], str]] = {
    "qwen2_moe": (SHARED, r".*\.(experts\.\d+|shared_expert)\.(gate|up|down)_proj"),
    "mixtral": ({}, r".*\.experts\.\d+\.w[123]"),
    "deepseek_v3": (DEEPSEEK, r".*\.(experts\.\d+|shared_experts)\.(gate|up|down)_proj"),
    "phimoe": ({}, r".*\.experts\.\d+\.w[123]"),
}


@pytest.mark.parametrize("family", BY_HAND)
def test_where_peft_drops_adapters_the_sum_is_made_by_hand(family: str, tmp_path: Path) -> None:
    """W + 1.5 * B @ A in float64, from the files, computed by the class."""
    sizes, targets = BY_HAND[family]
    model = stacks.build(family, **sizes)
    model.save_pretrained(tmp_path / "base", max_shard_size="8KB")
    base = surgery.open_checkpoint(tmp_path / "base")
    weights = {name: base.load(name) for name in base.tensors}
    modules = [name.removesuffix(".weight") for name in weights if re.fullmatch(rf"{targets}\.weight", name)]
    factors, generator = {}, torch.Generator().manual_seed(2)
    for module in modules:
        out, width = weights[f"{module}.weight"].shape
        a, b = 0.3 * torch.randn(4, width, generator=generator), 0.3 * torch.randn(out, 4, generator=generator)
        factors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        weights[f"{module}.weight"] = (weights[f"{module}.weight"].double() + 1.5 * b.double() @ a.double()).float()
    assert len(modules) >= 2 * 3 * stacks.EXPERTS
    for folder, tensors in (("a/0", factors), ("hand", weights)):
        (tmp_path / folder).mkdir(parents=True)
        save_file(
            tensors,
            tmp_path / folder / ("model.safetensors" if folder == "hand" else "adapter_model.safetensors"),
            {"format": "pt"},
        )
    shutil.copy(tmp_path / "base" / "config.json", tmp_path / "hand")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "target_modules": targets}
    (tmp_path / "a" / "0" / "adapter_config.json").write_text(json.dumps(config))
    wanted = logits(type(model).from_pretrained(tmp_path / "hand").eval())
    made = logits(type(model).from_pretrained(merged(tmp_path / "base", tmp_path / "a", Asked({}))).eval())
    compare(made, wanted, logits(model))


# The comparison can fail

SAMPLE = [
    ("llama", "rslora, patterns"), ("gpt2", "plain"), ("bert", "saved"), ("t5", "embedding"), ("whisper", "lora_bias"),
    ("mixtral", "parameters"), ("phi3", "dora"), ("clip", "two, weighted"), ("gpt_neox", "bias all"), ("vit",
    "bfloat16"),
    ("qwen2_moe", "tokens"), ("llama-tied", "embedding"), ("resnet", "convolutions"),
]  # fmt: skip


def doubled_alpha(folder: Path) -> None:
    """Twice every alpha that adapter_config.json says."""
    config = json.loads((folder / "adapter_config.json").read_text())
    more = {"alpha_pattern": {key: 2 * alpha for key, alpha in config["alpha_pattern"].items()}}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **more, "lora_alpha": 2 * config["lora_alpha"]}))


def without_layer(folder: Path) -> None:
    """The adapter without its LoRA on layers of number 1."""
    tensors = load_file(folder / "adapter_model.safetensors")
    left = {
        name: t
        for name, t in tensors.items()
        if not (re.search(r"\.(layers?|h|block|stages)\.1\.", name) and "lora_" in name)
    }
    assert len(left) < len(tensors)
    save_file(left, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("family", "option"), SAMPLE, ids=map(" × ".join, SAMPLE))
def test_mistakes_fail_the_comparison(family: str, option: str, base: Callable[[str], Path], tmp_path: Path) -> None:
    """A copy of the base in the place of the merge, alpha doubled, a layer left out."""
    asked = CASES[family, option]
    wanted = adapted(family, base(family), tmp_path / "right", asked)
    wrong = [base(family)]
    for mistake in (doubled_alpha, without_layer):
        folder = Path(shutil.copytree(tmp_path / "right", tmp_path / mistake.__name__))
        mistake(folder / "0")
        wrong.append(merged(base(family), folder, asked))
    for checkpoint in wrong:
        with pytest.raises(AssertionError, match="off by"):
            check(family, checkpoint, wanted)
