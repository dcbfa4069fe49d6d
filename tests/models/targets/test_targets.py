"""Targets: what is converted loads whole in the target's class, and computes what the source computes.

The judges are transformers' own classes, and for remote code its published forward pass (`remote.py`). For each
target, what the comparison would notice is shown by controls: a config field or a layout that is not the source's
fails it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
import transformers as tf
from remote import REMOTE, Remote
from safetensors.torch import load_file, save_file
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import surgery
from surgery.errors import LayoutError, NothingMatched, PlanError, SurgeryError
from surgery.models.targets import TARGETS, targets_for, targets_of

GPT = {**tiny_models.TEXT, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
NEOX = {
    **tiny_models.TEXT,
    "hidden_size": 48,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "use_parallel_residual": False,
    "rotary_pct": 1.0,
}
FALCON = {
    **tiny_models.TEXT,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}
PHI3 = {**tiny_models._LLAMA, "num_hidden_layers": 2, "rms_norm_eps": 3e-5, "max_position_embeddings": 64}


def longrope(pairs: int, **more: float) -> dict[str, Any]:
    """Other factors beyond 12 tokens: the inputs of the tests are longer."""
    rope = {"rope_type": "longrope", "short_factor": [1.1] * pairs, "long_factor": [2.5] * pairs, **more}
    return {"rope_parameters": rope, "original_max_position_embeddings": 12}


@dataclass(frozen=True)
class Case:
    """A source model, its target, and fields of the target's config that decide what it computes, with other values."""

    to: str
    make: Callable[[], tf.PreTrainedModel] | None = None  # None: one of REMOTE
    wrong: dict[str, Any] = field(default_factory=dict)
    generates: bool = True


def phi3(**fields: Any) -> Callable[[], tf.PreTrainedModel]:
    return lambda: tf.Phi3ForCausalLM(tf.Phi3Config(**PHI3, **fields))


LLAMA_WRONG = {"rms_norm_eps": 0.1, "rope_theta": 77.0, "hidden_act": "gelu"}
OPT_WRONG = {"activation_function": "relu", "num_attention_heads": 2}
PHI_WRONG = {"layer_norm_eps": 0.1, "rope_theta": 77.0, "hidden_act": "relu", "partial_rotary_factor": 0.5}
STARCODER_WRONG = {"norm_epsilon": 0.1, "rope_theta": 77.0, "hidden_act": "relu", "sliding_window": 5}
CASES: dict[str, Case] = {
    "phi3-llama": Case("llama", phi3(), LLAMA_WRONG),
    "phi3-llama-tied": Case("llama", phi3(tie_word_embeddings=True), LLAMA_WRONG),
    "phi3-llama-wide": Case("llama", phi3(head_dim=10), LLAMA_WRONG),
    "phi3-llama-longrope": Case("llama", phi3(**longrope(6)), {"rope_theta": 77.0}, generates=False),
    "phi3-llama-window-never-met": Case("llama", phi3(sliding_window=64)),
    "phi3-mistral": Case("mistral", phi3(), {**LLAMA_WRONG, "sliding_window": 5}),
    "phi3-mistral-window": Case("mistral", phi3(sliding_window=5), {"sliding_window": None}),
    "phi3-glm4_moe": Case("glm4_moe", phi3(partial_rotary_factor=0.5), {"partial_rotary_factor": 1.0, **LLAMA_WRONG}),
    "phi3-glm4_moe-longrope": Case(
        "glm4_moe", phi3(**longrope(3, partial_rotary_factor=0.5)), {"rope_theta": 77.0}, generates=False
    ),
    "gpt2-opt": Case("opt", lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT)), OPT_WRONG),
    "gpt2-opt-inner": Case(
        "opt", lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, n_inner=70, tie_word_embeddings=False)), OPT_WRONG
    ),
    "openai-gpt-opt": Case(
        "opt", lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT)), OPT_WRONG, generates=False
    ),
    "codegen-gptj": Case(
        "gptj",
        lambda: tf.CodeGenForCausalLM(tf.CodeGenConfig(**GPT, rotary_dim=8)),
        {"rotary_dim": 12, "layer_norm_epsilon": 0.1, "activation_function": "relu"},
    ),
    "falcon-phi": Case("phi", lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON)), PHI_WRONG),
    "falcon-phi-grouped": Case(
        "phi",
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, **GROUPED, bias=True, tie_word_embeddings=False)),
        PHI_WRONG,
    ),
    "falcon-phi-per-head": Case(
        "phi", lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, multi_query=False)), PHI_WRONG
    ),
    "gpt_neox-starcoder2": Case("starcoder2", lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**NEOX)), STARCODER_WRONG),
    "gpt_neox-starcoder2-bare": Case(
        "starcoder2", lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**NEOX, attention_bias=False)), STARCODER_WRONG
    ),
    "internlm2": Case("llama", wrong=LLAMA_WRONG),
    "internlm2-biased": Case("llama", wrong=LLAMA_WRONG),
    "baichuan": Case("llama", wrong=LLAMA_WRONG),
    "qwen": Case("qwen2", wrong=LLAMA_WRONG),
    "chatglm": Case("glm", wrong={**LLAMA_WRONG, "partial_rotary_factor": 1.0}),
    "chatglm-mha": Case("glm", wrong=LLAMA_WRONG),
}
IDS = torch.randint(3, 97, (2, 17), generator=torch.Generator().manual_seed(7))


def built(case: Case) -> tf.PreTrainedModel:
    """The source model, with weights, norms and biases large enough for every config field to matter."""
    assert case.make
    torch.manual_seed(0)
    model = case.make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model


@dataclass
class Converted:
    """A case, done: the source's folder and logits, the result's folder, and the model that transformers loads from
    it.
    """

    source: Path
    result: Path
    logits: torch.Tensor
    model: Any
    info: dict[str, Any]
    tokens: list[int]
    report: surgery.Report


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Converted]:
    """converted(name) -> the case, from a sharded source to smaller shards."""
    made: dict[str, Converted] = {}

    def get(name: str) -> Converted:
        if name not in made:
            case, folder = CASES[name], tmp_path_factory.mktemp(name)
            tokens: list[int] = []
            with torch.no_grad():
                if case.make:
                    source = built(case)
                    source.save_pretrained(folder / "source", max_shard_size="60KB")
                    logits = source(input_ids=IDS).logits
                    tokens = generated(source) if case.generates else []
                else:
                    remote = REMOTE[name]
                    remote.save(folder / "source")
                    logits = remote.forward(remote.weights(), remote.config, IDS)
            checkpoint = surgery.convert(surgery.open_checkpoint(folder / "source"), case.to)
            report = surgery.write(checkpoint, folder / "result", max_shard_size="40KB")
            model, info = tf.AutoModelForCausalLM.from_pretrained(
                folder / "result", output_loading_info=True, dtype=torch.float32
            )
            made[name] = Converted(folder / "source", folder / "result", logits, model.eval(), info, tokens, report)
        return made[name]

    return get


def generated(model: Any) -> list[int]:
    """Greedy tokens after one prompt, with the cache."""
    with torch.no_grad():
        return model.generate(IDS[:1], max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)[0].tolist()


def compare_logits(model: Any, want: torch.Tensor) -> None:
    """The model computes these logits, to 1e-5 of the largest."""
    with torch.no_grad():
        got = model(input_ids=IDS).logits.float()
    assert got.shape == want.shape
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


@pytest.mark.parametrize("name", CASES)
def test_the_target_computes_the_same(name: str, converted: Callable[[str], Converted]) -> None:
    """Loaded whole by the class that config.json names; logits equal, and so are generated tokens."""
    done = converted(name)
    assert type(done.model).__name__ == config_of(done.result)["architectures"][0]
    assert done.model.config.model_type == CASES[name].to
    assert {what: found for what, found in done.info.items() if found} == {}
    assert len(list(done.result.glob("*.safetensors"))) > 2 and len(list(done.source.glob("*.safetensors"))) >= 2
    compare_logits(done.model, done.logits)
    if done.tokens:
        assert generated(done.model) == done.tokens


@pytest.mark.parametrize(
    ("name", "wrong", "value"),
    [pytest.param(n, f, v, id=f"{n}: {f}") for n, case in CASES.items() for f, v in case.wrong.items()],
)
def test_a_wrong_field_fails_the_same_comparison(
    name: str, wrong: str, value: Any, converted: Callable[[str], Converted]
) -> None:
    """The same weights with one field of config.json changed still load, and compute something else."""
    done, config = converted(name), config_of(converted(name).result)
    assert config[wrong] != value
    config[wrong] = value
    if wrong in ("rope_theta", "partial_rotary_factor"):
        config["rope_parameters"][wrong] = value
        config["rope_scaling"] = config["rope_parameters"] if config["rope_scaling"] else None
    model = type(done.model)(CONFIG_MAPPING[CASES[name].to].from_dict(config)).eval()
    model.load_state_dict(done.model.state_dict())
    with pytest.raises(AssertionError):
        compare_logits(model, done.logits)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_layout_fails_the_same_comparison(name: str, converted: Callable[[str], Converted]) -> None:
    """Heads of q in another order, k and v exchanged, or the halves of the MLP: all of the right shapes."""
    done = converted(name)
    state = {n: t.clone() for n, t in done.model.state_dict().items()}

    def layers(leaf: str) -> list[str]:
        return [n for n in state if n.endswith(f".{leaf}.weight")]

    changes: dict[str, dict[str, torch.Tensor]] = {
        "heads": {n: state[n].roll(12, 0) for n in layers("q_proj")},
        "k and v": {n: state[n.replace("k_proj", "v_proj")] for n in layers("k_proj")}
        | {n: state[n.replace("v_proj", "k_proj")] for n in layers("v_proj")},
    }
    if layers("gate_proj"):
        changes["gate and up"] = {n: state[n.replace("gate_proj", "up_proj")] for n in layers("gate_proj")}
    for change in changes.values():
        assert change
        model = type(done.model)(done.model.config).eval()
        model.load_state_dict({**state, **change})
        with pytest.raises(AssertionError):
            compare_logits(model, done.logits)


@pytest.mark.parametrize("name", CASES)
def test_every_field_of_the_target_is_written(name: str, converted: Callable[[str], Converted]) -> None:
    """Nothing is left to the target's defaults: they differ from the source's, and between versions."""
    written = config_of(converted(name).result)
    kind = CONFIG_MAPPING[CASES[name].to]
    names = {kind.attribute_map.get(f.name, f.name) for f in dataclasses.fields(kind)}
    assert len(names) > 15 and names <= written.keys()
    assert "auto_map" not in written
    resolved = json.loads(json.dumps(tf.AutoConfig.from_pretrained(converted(name).result).to_dict()))
    assert {k: v for k, v in resolved.items() if k in written and v != written[k] and k != "_name_or_path"} == {}


def own_fields(model_type: str) -> set[str]:
    """The fields that a config class has of its own, beside its base's."""
    kind = CONFIG_MAPPING[model_type]
    return {f.name for f in dataclasses.fields(kind)} - {f.name for f in dataclasses.fields(tf.PreTrainedConfig)}


@pytest.mark.parametrize("name", CASES)
def test_every_own_field_is_said_by_the_row(name: str, converted: Callable[[str], Converted]) -> None:
    """The rows say all of them, from the source: none is filled in by the target's class."""
    source = surgery.open_checkpoint(converted(name).source).config
    target = next(t for t in targets_of(source) if t.name == CASES[name].to)
    complete = (
        {**target.defaults, **source}
        if target.defaults
        else CONFIG_MAPPING[target.source].from_dict(dict(source)).to_dict()
    )
    said = set(target.fields(complete))
    aliases = CONFIG_MAPPING[target.name].attribute_map
    assert {aliases.get(n, n) for n in own_fields(target.name)} <= {aliases.get(n, n) for n in said}


MOVED = ("phi3-mistral", "gpt2-opt", "openai-gpt-opt", "codegen-gptj", "falcon-phi-grouped", "gpt_neox-starcoder2-bare")


@pytest.mark.parametrize("name", MOVED)
def test_bfloat16_is_moved_byte_for_byte(name: str, tmp_path: Path) -> None:
    """Converting the checkpoint in bfloat16 gives the bytes of converting its exact copy in float32, which is what
    computes.
    """
    model = built(CASES[name]).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "bf16")
    model.to(torch.float32).save_pretrained(tmp_path / "f32")
    for kind in ("bf16", "f32"):
        surgery.write(
            surgery.convert(surgery.open_checkpoint(tmp_path / kind), CASES[name].to), tmp_path / f"{kind}-result"
        )
    got, want = tensors_in(tmp_path / "bf16-result"), tensors_in(tmp_path / "f32-result")
    assert got.keys() == want.keys()
    for n, tensor in got.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor.view(torch.int16), want[n].to(torch.bfloat16).view(torch.int16))
    assert config_of(tmp_path / "bf16-result")["dtype"] == "bfloat16"


# Refusals


def source(folder: Path, make: Callable[[], tf.PreTrainedModel], **fields: Any) -> Path:
    """A small source checkpoint; config.json with `fields` changed."""
    make().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config_of(folder), **fields}))
    return folder


def check_refused(folder: Path, to: str, kind: type[SurgeryError], what: str, *more: str) -> None:
    """Converting raises `kind` with this text, and `more` in where or help."""
    with pytest.raises(kind) as caught:
        surgery.convert(surgery.open_checkpoint(folder), to)
    assert type(caught.value) is kind
    assert caught.value.what == what
    for text in more:
        assert text in str(caught.value)


SILENT = "it would load in silence and compute something else"
UNFIT: dict[str, tuple[str, Callable[[], tf.PreTrainedModel] | Remote, dict[str, Any], tuple[str, ...]]] = {
    "phi3 with a window": (
        "llama",
        phi3(sliding_window=5),
        {},
        ("sliding_window is 5: llama attends", "help: mistral would"),
    ),
    "phi3 in part, llama": (
        "llama",
        phi3(partial_rotary_factor=0.5),
        {},
        ("partial_rotary_factor is 0.5: llama rotates whole heads", "help: glm4_moe would compute the same"),
    ),
    "phi3 in part, mistral": (
        "mistral",
        phi3(partial_rotary_factor=0.5),
        {},
        ("partial_rotary_factor is 0.5", "glm4_moe"),
    ),
    "phi3 in part with a window": (
        "glm4_moe",
        phi3(partial_rotary_factor=0.5, sliding_window=5),
        {},
        ("sliding_window is 5: glm4_moe", "no other class is known"),
    ),
    "whole phi3 as glm4_moe": (
        "glm4_moe",
        phi3(),
        {},
        ("whole heads are rotated", "llama or mistral would compute the same"),
    ),
    "gpt2 of another epsilon": (
        "opt",
        lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, layer_norm_epsilon=1e-6)),
        {},
        ("layer_norm_epsilon is 1e-06: opt's is 1e-05, always",),
    ),
    "gpt2 unscaled": (
        "opt",
        lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(**GPT, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True)
        ),
        {},
        ("scale_attn_weights is false", "scale_attn_by_inverse_layer_idx is true"),
    ),
    "falcon-40b": (
        "phi",
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2)),
        {},
        ("two norms before its parallel attention and MLP: phi has one",),
    ),
    "falcon-rw": (
        "phi",
        lambda: tf.FalconForCausalLM(tf.FalconConfig(**FALCON, alibi=True, multi_query=False, parallel_attn=False)),
        {},
        ("alibi is true", "parallel_attn is false"),
    ),
    "pythia": (
        "starcoder2",
        lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**{**NEOX, "use_parallel_residual": True, "rotary_pct": 0.25})),
        {},
        ("use_parallel_residual is true: two norms", "rotary_pct is 0.25: starcoder2 rotates whole heads"),
    ),
    "internlm2 of another rope": (
        "llama",
        REMOTE["internlm2"],
        {"rope_scaling": {"type": "su", "factor": 2.0}},
        ("rope_scaling of type su",),
    ),
    "baichuan 13b": (
        "llama",
        REMOTE["baichuan"],
        {"max_position_embeddings": None, "model_max_length": 4096},
        ("ALiBi",),
    ),
    "baichuan2": ("llama", REMOTE["baichuan"], {"z_loss_weight": 0}, ("normalises the rows of lm_head.weight",)),
    "qwen with biases": (
        "qwen2",
        REMOTE["qwen"],
        {"no_bias": False, "rotary_pct": 0.5},
        ("no_bias is false", "rotary_pct is 0.5"),
    ),
    "chatglm of long context": ("glm", REMOTE["chatglm"], {"rope_ratio": 50}, ("rope_ratio is 50: ChatGLM2 divides",)),
    "chatglm unlike glm": (
        "glm",
        REMOTE["chatglm"],
        {
            "add_bias_linear": True,
            "rmsnorm": False,
            "post_layer_norm": False,
            "apply_residual_connection_post_layernorm": True,
        },
        (
            "add_bias_linear is true",
            "rmsnorm is false",
            "post_layer_norm is false",
            "apply_residual_connection_post_layernorm is true",
        ),
    ),
    "another class": (
        "llama",
        phi3(),
        {"architectures": ["Phi3ForSequenceClassification"]},
        ("its class is Phi3ForSequenceClassification: what is known is Phi3ForCausalLM", "no other class is known"),
    ),
    "quantised": (
        "llama",
        phi3(),
        {"quantization_config": {"quant_method": "fp8"}},
        ("quantization_config: the weights are quantised",),
    ),
}


@pytest.mark.parametrize("name", UNFIT)
def test_refuses_what_would_compute_something_else(name: str, tmp_path: Path) -> None:
    to, make, fields, texts = UNFIT[name]
    folder = make.save(tmp_path / "a", **fields) if isinstance(make, Remote) else source(tmp_path / "a", make, **fields)
    kind = config_of(folder)["model_type"]
    check_refused(folder, to, PlanError, f"this {kind} is no {to}: {SILENT}", *texts)
    said = config_of(folder)
    if name not in ("another class", "quantised"):
        assert to not in targets_for(said)


def test_a_refusal_is_right(tmp_path: Path) -> None:
    """What is refused does compute something else: a Phi-3 with a window, loaded as the Llama that its weights fit."""
    model = built(Case("llama", phi3(sliding_window=5)))
    model.save_pretrained(tmp_path / "a")
    (tmp_path / "a/config.json").write_text(json.dumps({**config_of(tmp_path / "a"), "sliding_window": None}))
    surgery.write(surgery.convert(surgery.open_checkpoint(tmp_path / "a"), "llama"), tmp_path / "b")
    with torch.no_grad():
        want = model(input_ids=IDS).logits
    with pytest.raises(AssertionError):
        compare_logits(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval(), want)


def test_refuses_unknown_pairs(saved: Callable[..., Path]) -> None:
    known = "model type `phi3` can become llama, mistral, glm4_moe"
    check_refused(saved("phi3"), "opt", NothingMatched, "no way is known from model type `phi3` to `opt`", known)
    what = "no way is known from model type `bloom` to `llama`"
    check_refused(
        saved("bloom"),
        "llama",
        NothingMatched,
        what,
        "no target is known for model type `bloom`; ",
    )


@pytest.mark.parametrize(("kind", "near"), [("phi33", "phi3"), ("hpi3", "phi3"), ("chat_glm", "chatglm"), ("@@@@", "")])
def test_an_unknown_source_gets_the_nearest_and_no_list_of_all(
    kind: str, near: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base = shutil.copytree(saved("phi3"), tmp_path / "base")
    (base / "config.json").write_text(json.dumps({**config_of(base), "model_type": kind}))
    with pytest.raises(NothingMatched) as caught:
        surgery.convert(surgery.open_checkpoint(base), "llama")
    tip = str(caught.value.help)
    assert len(tip) < 200 and (f"nearest to `{kind}` {near}" in tip if near else "nearest" not in tip)


def test_a_target_that_is_mistyped_gets_the_nearest(saved: Callable[..., Path]) -> None:
    with pytest.raises(NothingMatched) as caught:
        surgery.convert(surgery.open_checkpoint(saved("phi3")), "lama")
    assert "nearest to `lama` llama" in str(caught.value.help)


def edited(folder: Path, dest: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy with its tensors changed in place, in one file."""
    dest.mkdir()
    tensors = tensors_in(folder)
    change(tensors)
    save_file({n: t.contiguous() for n, t in tensors.items()}, dest / "model.safetensors", {"format": "pt"})
    (dest / "config.json").write_bytes((folder / "config.json").read_bytes())
    return dest


def test_the_class_is_asked_before_anything_is_written(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Missing, unexpected and misshapen tensors are named, all at once."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("model.layers.1.self_attn.o_proj.weight")
        tensors["model.layers.0.mlp.router.weight"] = torch.ones(2, 2)
        tensors["model.norm.weight"] = torch.ones(7)

    folder = edited(saved("phi3"), tmp_path / "a", change)
    check_refused(
        folder,
        "llama",
        PlanError,
        "LlamaForCausalLM would not load the result whole",
        "missing: model.layers.1.self_attn.o_proj.weight",
        "unexpected: model.layers.0.mlp.router.weight",
        "of another shape: model.norm.weight (7,), not (48,)",
        "left out first with surgery drop",
    )


def test_an_untied_head_may_not_be_missing(saved: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited(saved("phi3"), tmp_path / "a", lambda tensors: tensors.pop("lm_head.weight"))
    check_refused(
        folder, "llama", PlanError, "LlamaForCausalLM would not load the result whole", "missing: lm_head.weight"
    )


def test_refuses_incomplete_configs(tmp_path: Path) -> None:
    folder = REMOTE["qwen"].save(tmp_path / "a", intermediate_size=None)
    what = "config.json has no intermediate_size or ffn_hidden_size"
    check_refused(folder, "qwen2", PlanError, what, "complete config.json from the model's configuration class")
    folder = source(tmp_path / "b", phi3(), hidden_size="many")
    with pytest.raises(PlanError, match="the config class of model type `phi3` refuses the config"):
        surgery.convert(surgery.open_checkpoint(folder), "llama")
    folder = REMOTE["internlm2"].save(tmp_path / "c", rope_scaling="dynamic")
    check_refused(
        folder,
        "llama",
        PlanError,
        f"this internlm2 is no llama: {SILENT}",
        "config.json makes no sense: 'str' object has",
    )
    folder = REMOTE["internlm2"].save(tmp_path / "d", num_attention_heads=0, head_dim=None)
    check_refused(
        folder, "llama", LayoutError, "config.json says num_attention_heads = 0, which is no head count or width"
    )
    folder = REMOTE["baichuan"].save(tmp_path / "e", hidden_size=None)
    check_refused(folder, "llama", LayoutError, "config.json has none of hidden_size")
    folder = REMOTE["chatglm"].save(tmp_path / "f", layernorm_epsilon=None, ffn_hidden_size=None)
    check_refused(folder, "glm", PlanError, "config.json has no ffn_hidden_size", "complete config.json")


def test_refuses_without_config(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", phi3())
    (folder / "config.json").unlink()
    what = "without a model type in config.json no target is known"
    check_refused(folder, "llama", NothingMatched, what, "put the model's config.json beside the shards")


def test_sizes_that_contradict_the_config(tmp_path: Path) -> None:
    folder = source(tmp_path / "a", phi3(), num_key_value_heads=4)
    check_refused(
        folder,
        "llama",
        LayoutError,
        "the fused qkv does not fit the layout of model type `phi3`",
        "contradict each other",
    )


# Files as they are found


def test_hub_names_and_buffers(tmp_path: Path) -> None:
    """GPT-2 on the Hub lacks the first part of its names, and has masks as buffers: these are dropped by name."""
    model = built(CASES["gpt2-opt"])
    model.save_pretrained(tmp_path / "a")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        for layer in range(2):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 4, 4)
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)

    folder = edited(tmp_path / "a", tmp_path / "hub", change)
    checkpoint = surgery.convert(surgery.open_checkpoint(folder), "opt")
    assert sorted(checkpoint.dropped) == [f"h.{i}.attn.{n}" for i in range(2) for n in ("bias", "masked_bias")]
    surgery.write(checkpoint, tmp_path / "b")
    opt = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "b").eval()
    with torch.no_grad():
        compare_logits(opt, model(input_ids=IDS).logits)


def test_positions_under_padding(converted: Callable[[str], Converted]) -> None:
    """As the note says: on the left-padded input, opt computes what the source does when it is given position_ids."""
    done = converted("gpt2-opt")
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    original = tf.AutoModelForCausalLM.from_pretrained(done.source).eval()
    with torch.no_grad():
        got = done.model(input_ids=IDS, attention_mask=mask).logits[0, 5:]
        want = original(input_ids=IDS, attention_mask=mask, position_ids=positions).logits[0, 5:]
        without = original(input_ids=IDS, attention_mask=mask).logits[0, 5:]
    assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    assert (got - without).abs().max() > 1e-3 * want.abs().max()
    assert "padded on the left" in "\n".join(done.report.notes)


def test_old_names_of_qwen(tmp_path: Path) -> None:
    """Its first configs have GPT-2's names for sizes."""
    new = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    old = dict.fromkeys(new) | {"n_embd": 48, "n_layer": 2, "n_head": 4, "ffn_hidden_size": 80, "n_positions": 64}
    for name, fields in (("new", {}), ("old", old)):
        folder = REMOTE["qwen"].save(tmp_path / name, **fields)
        surgery.write(surgery.convert(surgery.open_checkpoint(folder), "qwen2"), tmp_path / f"{name}-result")
    assert config_of(tmp_path / "old-result") == config_of(tmp_path / "new-result")


def test_old_names_of_phi3(converted: Callable[[str], Converted], tmp_path: Path) -> None:
    """Configs from before transformers 5 have the factors in rope_scaling, with a type."""
    folder = edited(converted("phi3-llama-longrope").source, tmp_path / "a", lambda _: None)
    config = config_of(folder)
    rope = config.pop("rope_parameters")
    old = {"type": "longrope", "short_factor": rope["short_factor"], "long_factor": rope["long_factor"]}
    (folder / "config.json").write_text(json.dumps({**config, "rope_theta": rope["rope_theta"], "rope_scaling": old}))
    surgery.write(surgery.convert(surgery.open_checkpoint(folder), "llama"), tmp_path / "b")
    assert config_of(tmp_path / "b") == config_of(converted("phi3-llama-longrope").result)


def test_internlm2_beyond_its_length(tmp_path: Path) -> None:
    """Dynamic scaling is kept: equal where the input is longer than max_position_embeddings, too."""
    remote = REMOTE["internlm2"]
    folder = remote.save(tmp_path / "a", max_position_embeddings=10)
    surgery.write(surgery.convert(surgery.open_checkpoint(folder), "llama"), tmp_path / "b")
    want = remote.forward(remote.weights(), {**remote.config, "max_position_embeddings": 10}, IDS)
    model = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "b", dtype=torch.float32).eval()
    compare_logits(model, want)
    with pytest.raises(AssertionError):
        compare_logits(model, remote.forward(remote.weights(), remote.config, IDS))


def test_rope_ratio_of_glm4() -> None:
    """GLM-4 multiplies the base by it; other ChatGLM are refused."""
    target = next(t for t in TARGETS if t.source == "chatglm")
    config = {**target.defaults, **REMOTE["chatglm"].config, "padded_vocab_size": 151552, "rope_ratio": 500}
    assert target.unfit(config) == []
    assert target.fields(config)["rope_parameters"] == {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "partial_rotary_factor": 0.5,
    }


# Composition


@pytest.mark.parametrize(("name", "to"), [("phi3", "llama"), ("gpt2", "opt")])
def test_what_was_split_before_converts_the_same(
    name: str, to: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    """Also where only the attention was split, and the rest is fused still."""
    whole = surgery.open_checkpoint(saved(name))
    surgery.write(surgery.convert(whole, to), tmp_path / "direct")
    for way, checkpoint in {"all": surgery.split(whole), "qkv": surgery.split_qkv(whole)}.items():
        surgery.write(surgery.convert(checkpoint, to), tmp_path / way)
        assert (tmp_path / way / "model.safetensors").read_bytes() == (
            tmp_path / "direct/model.safetensors"
        ).read_bytes()
        assert config_of(tmp_path / way) == config_of(tmp_path / "direct")


def test_merged_and_converted_in_one_pass(saved: Callable[..., Path], tmp_path: Path) -> None:
    """Movement of sums, transposed ones included: the same bytes as merging first and converting the result."""
    modules = {
        f"transformer.h.{i}.{m}": s
        for i in range(3)
        for m, s in {"attn.c_attn": (36, 108), "mlp.c_fc": (36, 144)}.items()
    }
    tensors = {}
    for module, (inner, outer) in modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = torch.randn(3, inner)
        tensors[f"base_model.model.{module}.lora_B.weight"] = torch.randn(outer, 3)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(tensors, adapter / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}
    (adapter / "adapter_config.json").write_text(json.dumps(said))
    merged = surgery.merge(surgery.open_checkpoint(saved("gpt2")), surgery.open_adapter(adapter))
    surgery.write(surgery.convert(merged, "opt"), tmp_path / "one")
    surgery.write(merged, tmp_path / "merged")
    surgery.write(surgery.convert(surgery.open_checkpoint(tmp_path / "merged"), "opt"), tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


# What the user is told


def test_split_says_what_loads_its_result(saved: Callable[..., Path], tmp_path: Path) -> None:
    whole = surgery.open_checkpoint(saved("phi3"))
    ways = "surgery convert --as llama or surgery convert --as mistral writes a checkpoint that one does"
    split = surgery.split_qkv(whole)
    assert (
        [n for n in split.notes if n.endswith(ways)]
        == [n for n in split.notes if "does not load these names" in n]
        != []
    )
    assert surgery.fuse_qkv(split).notes == whole.notes
    assert not [n for n in surgery.convert(split, "llama").notes if "does not load these names" in n]
    (note,) = surgery.split_qkv(surgery.open_checkpoint(saved("bloom"))).notes
    assert note == "config.json still names a class that does not load these names; fuse is the way back"


def test_notes(tmp_path: Path, converted: Callable[[str], Converted]) -> None:
    notes = "\n".join(converted("qwen").report.notes)
    assert "equal for inputs up to seq_length 32; beyond it Qwen uses use_logn_attn and use_dynamic_ntk" in notes
    assert "config.json does not say, and the model's code assumes: initializer_range 0.02" in notes
    assert "config.json names no remote code any more" in notes
    assert "the tokenizer's files, the chat template and generation_config.json are carried as they are" in notes
    assert (converted("qwen").result / "modeling_remote.py").is_file()
    assert config_of(converted("baichuan").result)["dtype"] == "float16"  # as torch_dtype said
    dropped = surgery.convert(surgery.open_checkpoint(converted("baichuan").source), "llama").dropped
    assert sorted(dropped) == [f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(2)]
    assert "the sliding window of 64 is longer than any input" in "\n".join(
        converted("phi3-llama-window-never-met").report.notes
    )
    assert "computes its cache anew" in "\n".join(converted("phi3-llama-longrope").report.notes)


@pytest.mark.parametrize("name", CASES)
def test_the_targets_of_raw_configs(name: str, converted: Callable[[str], Converted]) -> None:
    """What fits is known from config.json alone, as it is, without transformers."""
    assert CASES[name].to in targets_for(config_of(converted(name).source))


def test_the_targets_of_bare_configs() -> None:
    """A config that leaves out what its class assumes is judged by what that assumes."""
    assert targets_for({"model_type": "phi3"}) == ["llama", "mistral"]
    assert targets_for({"model_type": "gpt2"}) == ["opt"]
    assert targets_for({"model_type": "falcon"}) == ["phi"]
    assert targets_for({"model_type": "falcon", "new_decoder_architecture": True}) == []
    assert targets_for({"model_type": "gpt_neox"}) == []  # Pythia
    assert targets_for({"model_type": "llama"}) == targets_for({}) == []
    phi = {"model_type": "phi3", "rope_scaling": None}
    assert targets_for({**phi, "sliding_window": 2047, "max_position_embeddings": 4096}) == ["mistral"]
    assert targets_for({**phi, "sliding_window": 262144, "max_position_embeddings": 131072}) == ["llama", "mistral"]
    mini = {"sliding_window": 262144, "max_position_embeddings": 131072, "rope_scaling": {"type": "longrope"}}
    assert targets_for({**phi, **mini, "partial_rotary_factor": 0.75}) == ["glm4_moe"]
    assert targets_for({**phi, "rope_scaling": "su", "partial_rotary_factor": "half"}) == []


def test_the_table() -> None:
    """One row per way; its classes exist, and every row is tried here."""
    ways = [(t.source, t.name) for t in TARGETS]
    assert len(set(ways)) == len(ways)
    tried = {
        (name.partition("-")[0] if case.make is None else case.make().config.model_type, case.to)
        for name, case in CASES.items()
    }
    assert set(ways) == tried
    for target in TARGETS:
        assert getattr(tf, target.model_class).config_class is CONFIG_MAPPING[target.name]
