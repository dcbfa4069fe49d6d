"""Kinds of LoRA beyond linear layers, merged: what the checkpoint computes is what PEFT's live model does."""

from __future__ import annotations

import json
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
from models.fused import stacks
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotSupported

EPS = torch.finfo(torch.float32).eps
_VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "image_size": 16,
}
_BERT = {"vocab_size": 97, "hidden_size": 36, "intermediate_size": 70, "num_hidden_layers": 3, "num_attention_heads": 3}


FAMILIES: dict[str, Callable[[], tf.PreTrainedModel]] = {
    **{name: tiny_models.MODELS[name] for name in ("llama", "llama-tied", "gpt2", "phi3")},
    "resnet": lambda: tf.ResNetForImageClassification(
        tf.ResNetConfig(embedding_size=8, hidden_sizes=[12, 16], depths=[1, 1], layer_type="bottleneck", num_labels=5)
    ),
    "wav2vec2": lambda: tf.Wav2Vec2ForCTC(
        tf.Wav2Vec2Config(
            vocab_size=11,
            hidden_size=12,
            intermediate_size=20,
            num_hidden_layers=1,
            num_attention_heads=2,
            conv_dim=(8, 10),
            conv_stride=(2, 2),
            conv_kernel=(4, 3),
            conv_bias=True,
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ),
    "videomae": lambda: tf.VideoMAEForVideoClassification(
        tf.VideoMAEConfig(**_VISION, patch_size=8, num_frames=4, tubelet_size=2, use_mean_pooling=True, num_labels=5)
    ),
    "siglip": lambda: tf.SiglipVisionModel(tf.SiglipVisionConfig(**_VISION, patch_size=8)),
    "bert-mlm": lambda: tf.BertForMaskedLM(tf.BertConfig(**_BERT)),
    "blip": lambda: tf.BlipForConditionalGeneration(
        tf.BlipConfig(
            text_config={
                **_BERT,
                "num_hidden_layers": 1,
                "encoder_hidden_size": 24,
                "bos_token_id": 1,
                "sep_token_id": 2,
                "eos_token_id": 2,
            },
            vision_config={**_VISION, "patch_size": 8},
        )
    ),
}


def build(family: str) -> Any:
    """The family's model in eval mode; every parameter and running statistic random."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point() and "inv_freq" not in name:
                tensor.add_(torch.rand_like(tensor) * 0.2)
    return model


def output(model: Any, family: str) -> torch.Tensor:
    """What the model computes on fixed inputs."""
    made = torch.Generator().manual_seed(7)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=made)

    tokens = torch.randint(3, 97, (2, 7), generator=made)
    inputs: dict[str, Any] = {
        "resnet": {"pixel_values": noise(2, 3, 32, 32)},
        "wav2vec2": {"input_values": noise(2, 200)},
        "videomae": {"pixel_values": noise(2, 4, 3, 16, 16)},
        "siglip": {"pixel_values": noise(2, 3, 16, 16)},
        "blip": {"input_ids": tokens, "pixel_values": noise(2, 3, 16, 16)},
    }.get(family, {"input_ids": tokens})
    with torch.no_grad():
        result = model(**inputs)
    return (result["logits"] if "logits" in result else result["pooler_output"]).float()


@dataclass(frozen=True)
class Case:
    """A family and the config of its adapter: a LoraConfig's options, or an AdaLoraConfig's."""

    family: str
    lora: Mapping[str, Any]
    ranks: Mapping[str, Any] = field(default_factory=dict)  # AdaLoRA: which ranks are kept, by module's end


_ADA = {"init_r": 6, "target_r": 3, "total_step": 10, "tinit": 1, "tfinal": 1, "lora_alpha": 12}
TOKENS = [*range(60, 20, -1), 5, 70]
Q_BLOCKS = BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)
FEW_BLOCKS = BdLoraConfig(
    target_modules_bd_a=["layers.1.self_attn.q"], target_modules_bd_b=["up"], nblocks=4, match_strict=False
)
BLOCKS = BdLoraConfig(target_modules_bd_a=["o_proj"], target_modules_bd_b=["q_proj", "v_proj"], nblocks=2)
CONVOLUTIONS = ["convolution"]
FEW = {"q_proj": [True, False, True, True, False, False], "layers.1.self_attn.v_proj": [False] * 6}
CASES = {
    "conv2d": Case("resnet", {"target_modules": CONVOLUTIONS}),
    "conv2d and linear, patterns": Case(
        "resnet",
        {"target_modules": [*CONVOLUTIONS, "classifier.1"], "use_rslora": True,
        "rank_pattern": {"shortcut.convolution": 2}},
    ),
    "conv2d, dora": Case("resnet", {"target_modules": CONVOLUTIONS, "use_dora": True}),
    "conv1d": Case("wav2vec2", {"target_modules": r".*conv_layers\.\d\.conv|.*q_proj"}),
    "conv1d, bias": Case("wav2vec2", {"target_modules": r".*conv_layers\.\d\.conv|.*k_proj", "lora_bias": True}),
    "conv1d, dora": Case("wav2vec2", {"target_modules": r".*conv_layers\.\d\.conv|.*v_proj", "use_dora": True}),
    "conv3d": Case("videomae", {"target_modules": ["projection"]}),
    "conv3d, dora": Case("videomae", {"target_modules": ["projection", "query"], "use_dora": True}),
    "multihead attention": Case("siglip", {"target_modules": ["head.attention"]}),
    "multihead attention and more": Case(
        "siglip",
        {
            "target_modules": ["attention", "q_proj", "out_proj"],
            "rank_pattern": {"head.attention": 3},
            "exclude_modules": ".*head.*out_proj",
        },
    ),
    "adalora": Case("llama", {**_ADA, "target_modules": ["q_proj", "v_proj"]}),
    "adalora, ranks taken away": Case("llama", {**_ADA, "target_modules": ["q_proj", "v_proj", "o_proj"]}, FEW),
    "adalora, no alpha": Case("llama", {**_ADA, "lora_alpha": 0, "target_modules": ["q_proj"]},
    {"q_proj": FEW["q_proj"]}),
    "adalora, conv1d": Case("gpt2", {**_ADA, "target_modules": ["c_attn", "attn.c_proj"], "fan_in_fan_out": True}),
    "adalora, conv2d": Case("resnet", {**_ADA, "target_modules": CONVOLUTIONS}),
    "adalora, fused": Case("phi3", {**_ADA, "target_modules": ["qkv_proj"]}),
    "velora": Case("llama", {"target_modules": ["q_proj", "down_proj"], "velora_config": VeloraConfig(),
    "use_rslora": True}),
    "monteclora": Case("llama", {"target_modules": ["q_proj", "down_proj"], "monteclora_config": MontecloraConfig()}),
    "monteclora, conv1d": Case("gpt2", {"target_modules": ["c_attn"], "monteclora_config": MontecloraConfig(),
    "fan_in_fan_out": True}),
    "bd-lora": Case("llama", {"target_modules": ["q_proj", "v_proj", "o_proj"], "use_bdlora": BLOCKS}),
    "bd-lora beside lora": Case("llama", {"target_modules": ["q_proj", "up_proj", "o_proj"], "use_bdlora": FEW_BLOCKS}),
    "bd-lora of other ranks": Case(
        "llama",
        {
            "target_modules": ["q_proj", "o_proj"],
            "rank_pattern": {"q_proj": 6},
            "alpha_pattern": {"o_proj": 3},
            "use_bdlora": BLOCKS,
        },
    ),
    "gaussian": Case("llama", {"target_modules": ["q_proj"], "init_lora_weights": "Gaussian"}),
    "mica in capitals": Case("llama", {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "MiCA"}),
    "tokens alone": Case("llama", {"token_indices": TOKENS, "target_modules": ["embed_tokens"]}),
    "tokens alone, tied": Case("llama-tied", {"token_indices": TOKENS}),
    "tokens alone, in gpt2": Case("gpt2", {"token_indices": TOKENS, "target_modules": ["wte"]}),
    "norms alone": Case("llama", {"norms": ["norm", "input_layernorm"]}),
    "norms alone, with biases": Case("gpt2", {"norms": ["ln_1", "ln_f"]}),
    "norms and a head": Case("llama-tied", {"norms": ["norm"], "modules_to_save": ["lm_head"]}),
    "mica": Case("llama", {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": "mica"}),
    "tied, dora": Case("llama-tied", {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True}),
    "kept tied, dora": Case("llama-tied", {"target_modules": ["lm_head", "v_proj"], "use_dora": True,
    "ensure_weight_tying": True}),
    "all biases of a tied head": Case("bert-mlm", {"target_modules": ["query"], "bias": "all"}),
    "all biases of another tied head": Case("blip", {"target_modules": ["query"], "bias": "all"}),
    "layers twice": Case("llama", {"target_modules": ["q_proj", "down_proj"], "layer_replication": [[0, 2], [1, 3]]}),
    "layers twice, tied and one unused": Case(
        "llama-tied",
        {
            "target_modules": ["v_proj"],
            "layer_replication": [[0, 1], [0, 1], [2, 3], [2, 3]],
            "rank_pattern": {"layers.3.self_attn.v_proj": 2},
        },
    ),
    "layers twice, encoder": Case("bert-mlm", {"target_modules": ["query"], "layer_replication": [[0, 3], [1, 3]],
    "bias": "lora_only"}),
}  # fmt: skip


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the family's checkpoint, sharded inside layers; made once."""
    made: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            build(family).save_pretrained(made[family], max_shard_size="20KB")
        return made[family]

    return get


Bases = Callable[[str], Path]


def config_of(case: Case) -> peft.PeftConfig:
    if "init_r" in case.lora:
        return peft.AdaLoraConfig(**case.lora)
    if "token_indices" in case.lora:
        return peft.TrainableTokensConfig(**case.lora)
    if norms := case.lora.get("norms"):
        return peft.LNTuningConfig(target_modules=norms, modules_to_save=case.lora.get("modules_to_save"))
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **case.lora})


def trained(base: Path, case: Case, folder: Path) -> torch.Tensor:
    """Save an adapter of random factors to `folder`; what PEFT computes live with it, loaded from there."""
    kind = type(build(case.family))
    model = peft.get_peft_model(kind.from_pretrained(base).eval(), config_of(case)).eval()
    generator, made = torch.Generator().manual_seed(1), {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ("lora_" in name and "magnitude" not in name) or (parameter.requires_grad and name.endswith("bias")):
                if parameter.data_ptr() not in made:  # PEFT's tied factors are transposes of one another
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
                made[parameter.data_ptr()] = parameter
            elif parameter.requires_grad and any(
                kind in name for kind in ("trainable_tokens", "ln_tuning", "modules_to_save")
            ):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif "magnitude" in name:
                parameter.mul_(0.5 + torch.rand(parameter.shape, generator=generator))
    if case.ranks:
        ends = {
            name.removesuffix(".lora_E.default"): name
            for name, _ in model.named_parameters()
            if name.endswith(".lora_E.default")
        }
        ends = {
            name.removeprefix("base_model.model."): full.removeprefix("base_model.model.")
            for name, full in ends.items()
        }
        chosen = {full: mask for name, full in ends.items() for end, mask in case.ranks.items() if name.endswith(end)}
        model.peft_config["default"].rank_pattern = chosen
    model.save_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(kind.from_pretrained(base).eval(), folder).eval()
    return output(loaded.base_model.model, case.family)


def merged(base: Path, adapter: Path, out: Path, **options: Any) -> surgery.Report:
    return surgery.write(surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **options), out)


def errors(out: Path, live: torch.Tensor, base: Path, family: str) -> tuple[float, float]:
    """(error, effect) of a merged checkpoint, that loads without a missing or unexpected key, over the largest
    output.
    """
    kind = type(build(family))
    model, info = kind.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    before, made = output(kind.from_pretrained(base).eval(), family), output(model.eval(), family)
    largest = live.abs().max().item()
    return (made - live).abs().max().item() / largest, (live - before).abs().max().item() / largest


@pytest.mark.parametrize("name", CASES)
def test_merged_computes_what_the_live_model_computes(name: str, base_of: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    base = base_of(case.family)
    live = trained(base, case, tmp_path / "a")
    merged(base, tmp_path / "a", tmp_path / "out")
    error, effect = errors(tmp_path / "out", live, base, case.family)
    assert error < 1e-5, f"off by {error}"
    assert effect >= 1000 * max(error, EPS), f"an effect of {effect} proves nothing against an error of {error}"


@pytest.mark.parametrize("name", ["conv3d, dora", "multihead attention", "adalora, ranks taken away", "layers twice"])
@pytest.mark.parametrize("mistake", ["a copy of the base", "doubled scales", "one module left out"])
def test_mistakes_fail_the_comparison(mistake: str, name: str, base_of: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    base = base_of(case.family)
    live = trained(base, case, tmp_path / "a")
    tensors = load_file(tmp_path / "a/adapter_model.safetensors")
    ends = ("lora_B.weight", "lora_B")
    wrong = [n for n in tensors if n.endswith(ends)][: 1 if mistake == "one module left out" else None]
    factor = 2.0 if mistake == "doubled scales" else 0.0
    save_file(
        {n: t * factor if n in wrong else t for n, t in tensors.items()}, tmp_path / "a/adapter_model.safetensors"
    )
    merged(base, tmp_path / "a", tmp_path / "out")
    error, _ = errors(tmp_path / "out", live, base, case.family)
    assert error > 1e-3


def edited(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Path:
    """The adapter with its config and tensors changed in place."""
    config, tensors = (
        json.loads((folder / "adapter_config.json").read_text()),
        load_file(folder / "adapter_model.safetensors"),
    )
    change(config, tensors)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def by_hand(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file({f"base_model.model.{n}": t for n, t in tensors.items()}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6, **config}))
    return folder


# Convolutions of several groups


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_kernel_of_one_group_is_added(dims: int, tmp_path: Path) -> None:
    """A of (r, in / groups, k...), B of (out, r, 1...): the delta is the weight's own shape, and the convolution of
    it is as wide.
    """
    torch.manual_seed(0)
    kernel = (3, 2, 4)[:dims]
    weight, a, b = torch.randn(12, 4, *kernel), torch.randn(4, 4, *kernel), torch.randn(12, 4, *[1] * dims)
    (tmp_path / "base").mkdir()
    save_file(
        {"c.weight": weight, "c.bias": torch.randn(12)}, tmp_path / "base/model.safetensors", metadata={"format": "pt"}
    )
    by_hand(tmp_path / "a", {"c.lora_A.weight": a, "c.lora_B.weight": b})
    merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    made = load_file(tmp_path / "out/model.safetensors")["c.weight"]
    inputs = torch.randn(2, 8, *[7] * dims)
    convolve = (torch.conv1d, torch.conv2d, torch.conv3d)[dims - 1]
    first = torch.einsum("or,ri...->oi...", b.flatten(1), a)  # each group has its own B, on one A
    wanted = convolve(inputs, weight, groups=2) + 1.5 * convolve(inputs, first, groups=2)
    assert (convolve(inputs, made, groups=2) - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_peft_on_several_groups_is_refused(base_of: Bases, tmp_path: Path) -> None:
    """PEFT's A sees the inputs of all groups, which PEFT itself cannot merge either."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(8, 12, 3, groups=2))
    (tmp_path / "base").mkdir()
    save_file(
        {n: t.detach().clone() for n, t in module.state_dict().items()},
        tmp_path / "base/model.safetensors",
        metadata={"format": "pt"},
    )
    peft.get_peft_model(module, peft.LoraConfig(r=4, target_modules=["0"])).save_pretrained(tmp_path / "a")
    with pytest.raises(
        NotSupported, match="LoRA on a convolution of 2 groups lets each of them see the inputs of all"
    ) as caught:
        merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    assert "lora_A is (4, 8, 3, 3), lora_B (12, 2, 1, 1)" in str(caught.value) and not (tmp_path / "out").exists()


def test_another_kernel_is_refused(base_of: Bases, tmp_path: Path) -> None:
    trained(base_of("resnet"), CASES["conv2d"], tmp_path / "a")
    name = "base_model.model.resnet.embedder.embedder.convolution.lora_A.weight"
    edited(tmp_path / "a", lambda _, tensors: tensors.update({name: torch.ones(4, 3, 7, 5)}))
    with pytest.raises(AdapterError, match=r"the delta would be \(8, 3, 7, 5\), the base tensor is \(8, 3, 7, 7\)"):
        merged(base_of("resnet"), tmp_path / "a", tmp_path / "out")


# AdaLoRA


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            lambda c, t: c.update(init_r=5),
            "adapter_config.json says rank 5, but lora_A is (6, 48), lora_B (40, 6) and lora_E (6, 1)",
        ),
        (lambda c, t: c.update(init_r=0), "the adapter's rank or alpha is not a number"),
        (
            lambda c, t: c.update(rank_pattern={"q_proj": 3}),
            "the rank_pattern of an AdaLoRA adapter is no table of kept ranks",
        ),
        (
            lambda c, t: t.pop(next(n for n in t if "lora_E" in n)),
            "AdaLoRA with lora_A, lora_B is no lora_A, lora_B and lora_E",
        ),
    ],
)
def test_an_adalora_that_contradicts_itself_is_refused(change: Any, what: str, base_of: Bases, tmp_path: Path) -> None:
    trained(base_of("llama"), CASES["adalora"], tmp_path / "a")
    with pytest.raises(AdapterError) as caught:
        merged(base_of("llama"), edited(tmp_path / "a", change), tmp_path / "out")
    assert caught.value.what == what and not (tmp_path / "out").exists()


def test_modules_of_which_no_rank_is_left_are_dropped_by_name(base_of: Bases, tmp_path: Path) -> None:
    trained(base_of("llama"), CASES["adalora, ranks taken away"], tmp_path / "a")
    plan = surgery.plan(surgery.merge(surgery.open_checkpoint(base_of("llama")), surgery.open_adapter(tmp_path / "a")))
    name = "base_model.model.model.layers.1.self_attn.v_proj.lora_"
    assert plan.dropped == tuple(f"{name}{part}" for part in "ABE")
    assert "model.layers.1.self_attn.v_proj.weight" not in plan.computed and len(plan.computed) == 3 * 3 - 1


def test_adapters_of_two_kinds_are_summed(base_of: Bases, tmp_path: Path) -> None:
    """LoRA and AdaLoRA in one pass: the base and both deltas, by hand."""
    base = base_of("llama")
    trained(base, CASES["adalora"], tmp_path / "ada")
    trained(base, Case("llama", {"target_modules": ["q_proj"]}), tmp_path / "lora")
    opened = [surgery.open_adapter(tmp_path / name) for name in ("ada", "lora")]
    name = "model.layers.2.self_attn.q_proj"
    made = surgery.merge(surgery.open_checkpoint(base), opened, [0.5, -1]).load(f"{name}.weight")
    ada, lora = (load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("ada", "lora"))
    a, b, e = (ada[f"base_model.model.{name}.lora_{part}"].double() for part in "ABE")
    wanted = surgery.open_checkpoint(base).load(f"{name}.weight").double() + 0.5 * 12 / (6 + 1e-5) * b @ (a * e)
    wanted -= (
        1.5
        * lora[f"base_model.model.{name}.lora_B.weight"].double()
        @ lora[f"base_model.model.{name}.lora_A.weight"].double()
    )
    assert (made.double() - wanted).abs().max() < 1e-6 * wanted.abs().max()


# Initialisations that change the base


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_2"])
def test_converted_by_peft_it_is_ordinary(init: str, base_of: Bases, tmp_path: Path) -> None:
    """A PiSSA adapter changes its base; saved as the refusal says, it is LoRA on the original, and computes what was
    trained.
    """
    base = base_of("llama")
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    torch.manual_seed(0)
    model = peft.get_peft_model(tf.LlamaForCausalLM.from_pretrained(base).eval(), config).eval()
    model.peft_config[
        "default"
    ].init_lora_weights = True  # as PEFT's guide has it, so that the first adapter loads as it is
    model.save_pretrained(tmp_path / "first")
    model.peft_config["default"].init_lora_weights = init
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    live = output(model, "llama")
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(NotSupported, match="which changes the base it belongs to"):
        merged(base, tmp_path / "raw", tmp_path / "no")
    model.save_pretrained(tmp_path / "a", path_initial_model_for_weight_conversion=tmp_path / "first")
    merged(base, tmp_path / "a", tmp_path / "out")
    error, effect = errors(tmp_path / "out", live, base, "llama")
    assert error < 1e-5 and effect >= 1000 * max(error, EPS)


# nn.MultiheadAttention


def test_the_live_model_adds_the_delta_of_out_proj_twice(base_of: Bases, tmp_path: Path) -> None:
    """What attention.py says of PEFT, seen in the weights that the merge made."""
    trained(base_of("siglip"), CASES["multihead attention"], tmp_path / "a")
    made = surgery.merge(surgery.open_checkpoint(base_of("siglip")), surgery.open_adapter(tmp_path / "a"))
    before, stored = surgery.open_checkpoint(base_of("siglip")), load_file(tmp_path / "a/adapter_model.safetensors")
    for end, times in (("in_proj_weight", 1), ("out_proj.weight", 2)):
        name = next(n for n in before.tensors if n.endswith(f"head.attention.{end}"))
        key = "head.attention.base_layer.out_proj." if "out" in end else "head.attention."
        a, b = (stored[next(n for n in stored if n.endswith(f"{key}lora_{part}.weight"))] for part in "AB")
        assert torch.allclose(made.load(name), before.load(name) + times * 1.5 * b @ a, atol=1e-5)


def test_biases_on_multihead_attention_are_refused(base_of: Bases, tmp_path: Path) -> None:
    trained(
        base_of("siglip"), Case("siglip", {"target_modules": ["head.attention"], "lora_bias": True}), tmp_path / "a"
    )
    with pytest.raises(NotSupported, match=r"lora_bias on nn\.MultiheadAttention is not supported"):
        merged(base_of("siglip"), tmp_path / "a", tmp_path / "out")


# Layers


def replication(said: Any, folder: Path, base: Path) -> Path:
    """A LoRA on v_proj of layer 0, whose config says this layer_replication."""
    width = surgery.open_checkpoint(base).tensors["model.layers.0.self_attn.v_proj.weight"].shape
    tensors = {"A": torch.ones(4, width[1]), "B": torch.ones(width[0], 4)}
    return by_hand(
        folder,
        {f"model.layers.0.self_attn.v_proj.lora_{k}.weight": t for k, t in tensors.items()},
        layer_replication=said,
    )


def test_copies_of_layers_are_bytes_and_what_is_unused_is_dropped(base_of: Bases, tmp_path: Path) -> None:
    base = surgery.open_checkpoint(base_of("llama"))
    made = surgery.merge(base, surgery.open_adapter(replication([[0, 2], [0, 1]], tmp_path / "a", base_of("llama"))))
    plan = surgery.plan(made)
    assert plan.computed == ("model.layers.0.self_attn.v_proj.weight",)
    assert plan.dropped == tuple(sorted(n for n in base.tensors if ".layers.2." in n))
    for name, tensor in made.tensors.items():
        if ".layers.2." in name:
            assert tensor == base.tensors[name.replace(".2.", ".0.")]
    assert made.config == {**base.config, "num_hidden_layers": 3} and made.history[-2]["layers"] == [0, 1, 0]
    assert "3 layers became 3, as the adapter's layer_replication says: 0, 1, 0" in made.notes


def test_config_json_follows_where_it_speaks_of_layers(base_of: Bases, tmp_path: Path) -> None:
    """In a nested config too, and in lists of one entry for each layer."""
    base = surgery.open_checkpoint(base_of("llama"))
    adapter = surgery.open_adapter(replication([[0, 3], [1, 2]], tmp_path / "a", base_of("llama")))
    text = {"num_hidden_layers": 3, "layer_types": ["x", "y", "z"], "sizes": [1, 2, 3]}
    made = surgery.merge(
        base.with_config({"model_type": "other", "text_config": text, "vision_config": {"num_hidden_layers": 5}}),
        adapter,
    )
    wanted = {"num_hidden_layers": 4, "layer_types": ["x", "y", "z", "y"], "sizes": [1, 2, 3]}
    assert made.config == {"model_type": "other", "text_config": wanted, "vision_config": {"num_hidden_layers": 5}}
    with pytest.raises(NotSupported, match=r"config\.json does not say that the base has 3 layers"):
        surgery.merge(base.with_config({"num_hidden_layers": 2}), adapter)
    with pytest.raises(NotSupported, match=r"config\.json says of layers by their place what they are") as caught:
        surgery.merge(base.with_config({"num_hidden_layers": 3, "first_k_dense_replace": 2}), adapter)
    assert caught.value.where == ("config.json: first_k_dense_replace = 2",)


@pytest.mark.parametrize("said", [[[0, 4]], [[2, 1]], [[0, 1, 2]], [0, 1], [[True, 2]]])
def test_ranges_that_are_none_are_refused(said: Any, base_of: Bases, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"of the base's 3 layers|and not a list of pairs of layers") as caught:
        merged(base_of("llama"), replication(said, tmp_path / "a", base_of("llama")), tmp_path / "out")
    assert f"layer_replication = {said!r}" in str(caught.value) and not (tmp_path / "out").exists()


def test_adapters_on_different_layers_are_refused(base_of: Bases, tmp_path: Path) -> None:
    folders = [replication(said, tmp_path / str(i), base_of("llama")) for i, said in enumerate(([[0, 3]], None))]
    with pytest.raises(NotSupported, match="the adapters were trained on different replications of layers"):
        surgery.merge(surgery.open_checkpoint(base_of("llama")), [surgery.open_adapter(one) for one in folders])
    with pytest.raises(
        NotSupported,
        match="which layers are to be replicated is not known: the base has none that PEFT would replicate",
    ):
        surgery.merge(surgery.open_checkpoint(base_of("gpt2")), surgery.open_adapter(folders[0]))


# Tied tensors and magnitudes


def test_magnitudes_make_tied_tensors_differ(base_of: Bases, tmp_path: Path) -> None:
    """Rows' magnitudes in the head, columns' in the embedding: with --tied error it is refused."""
    trained(base_of("llama-tied"), CASES["kept tied, dora"], tmp_path / "a")
    report = merged(base_of("llama-tied"), tmp_path / "a", tmp_path / "out")
    assert report.history[-1]["added"] == ["lm_head.weight"]  # type: ignore[index]
    with pytest.raises(NotSupported, match="the adapter changes one of two tied tensors"):
        merged(base_of("llama-tied"), tmp_path / "a", tmp_path / "no", tied="error")
    edited(tmp_path / "a", lambda _, t: [t.pop(n) for n in list(t) if n.startswith("base_model.model.lm_head.")])
    with pytest.raises(NotSupported, match="DoRA on some of the tied tensors that are to stay tied is not supported"):
        merged(base_of("llama-tied"), tmp_path / "a", tmp_path / "no")


# Bytes


@pytest.mark.parametrize("name", ["conv2d, dora", "adalora, fused", "multihead attention"])
def test_bytes_depend_on_nothing_else(name: str, base_of: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    trained(base_of(case.family), case, tmp_path / "a")
    checkpoint = surgery.merge(surgery.open_checkpoint(base_of(case.family)), surgery.open_adapter(tmp_path / "a"))
    surgery.write(checkpoint, tmp_path / "one", workers=1)
    surgery.write(checkpoint, tmp_path / "two", workers=3, memory="64MB")
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


# What the config aims at


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_all_linear_as_peft_writes_it_on_experts(kind: str, tmp_path: Path) -> None:
    """Bare target_parameters are called like parameters that each module might have; the router's is named with its
    module.
    """
    base = stacks.build(kind)
    base.save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(
        stacks.build(kind), peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear")
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    model.save_pretrained(tmp_path / "a")
    said = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert {"gate.weight", "gate_up_proj", "down_proj"} <= set(said["target_parameters"])
    merged(tmp_path / "base", tmp_path / "a", tmp_path / "out")
    tokens = torch.arange(12).reshape(1, -1)
    with torch.no_grad():
        live, before = model(input_ids=tokens).logits, base.eval()(input_ids=tokens).logits
        made = type(base).from_pretrained(tmp_path / "out").eval()(input_ids=tokens).logits
    assert (made - live).abs().max() <= 1e-5 * live.abs().max() < 1e-2 * (live - before).abs().max()


def test_lora_that_the_config_does_not_aim_at_is_refused(base_of: Bases, tmp_path: Path) -> None:
    """PEFT's live model passes over it: what is merged without it is what that computes."""
    base = base_of("llama")
    trained(base, Case("llama", {"target_modules": ["q_proj", "v_proj"]}), tmp_path / "a")
    edited(tmp_path / "a", lambda config, _: config.update(target_modules=["q_proj"]))
    with pytest.raises(AdapterError, match=r"adapter_config\.json does not aim at 3 of the 6 modules") as caught:
        merged(base, tmp_path / "a", tmp_path / "out")
    assert "model.layers.0.self_attn.v_proj" in caught.value.where and "--except" in str(caught.value)
    merged(base, tmp_path / "a", tmp_path / "out", except_=r".*v_proj")
    live = peft.PeftModel.from_pretrained(type(build("llama")).from_pretrained(base).eval(), tmp_path / "a").eval()
    error, effect = errors(tmp_path / "out", output(live.base_model.model, "llama"), base, "llama")
    assert error < 1e-5 and effect >= 1000 * max(error, EPS)
    edited(tmp_path / "a", lambda config, _: config.pop("target_modules"))
    merged(base, tmp_path / "a", tmp_path / "unsaid")


def test_targets_without_factors_are_noted(base_of: Bases, tmp_path: Path) -> None:
    trained(base_of("llama"), Case("llama", {"target_modules": ["q_proj", "v_proj"]}), tmp_path / "a")
    edited(
        tmp_path / "a",
        lambda _, tensors: [tensors.pop(name) for name in list(tensors) if ".1.self_attn.v_proj" in name],
    )
    report = merged(base_of("llama"), tmp_path / "a", tmp_path / "out")
    said = (
        f"adapter_config.json aims at 1 modules that {tmp_path / 'a'} has no factors for:"
        " model.layers.1.self_attn.v_proj"
    )
    assert said in report.notes


@pytest.mark.parametrize(
    ("name", "part"), [("velora", "lora_velora_embed"), ("monteclora", "lora_monteclora_sampler.std_prior")]
)
def test_what_only_training_uses_is_dropped_by_name(name: str, part: str, base_of: Bases, tmp_path: Path) -> None:
    case = CASES[name]
    trained(base_of(case.family), case, tmp_path / "a")
    stored = {
        key
        for key in load_file(tmp_path / "a/adapter_model.safetensors")
        if ".lora_A." not in key and ".lora_B." not in key
    }
    made = surgery.merge(surgery.open_checkpoint(base_of(case.family)), surgery.open_adapter(tmp_path / "a"))
    assert set(made.dropped) == stored and any(key.endswith(f".q_proj.{part}") for key in stored)
    assert surgery.verify(tmp_path / "a").ok


def test_blocks_are_not_split(base_of: Bases, tmp_path: Path) -> None:
    """The rows of a factor that is stored as blocks are not those of q, k and v."""
    case = Case(
        "phi3",
        {"target_modules": ["qkv_proj"], "use_bdlora": BdLoraConfig(target_modules_bd_a=["qkv_proj"], nblocks=2)},
    )
    live = trained(base_of("phi3"), case, tmp_path / "a")
    base, adapter = surgery.open_checkpoint(base_of("phi3")), surgery.open_adapter(tmp_path / "a")
    with pytest.raises(NotSupported, match="stored as blocks cannot be split or fused"):
        surgery.split(adapter, base=base)
    surgery.write(surgery.fuse(surgery.merge(surgery.split(base), adapter)), tmp_path / "out")
    error, effect = errors(tmp_path / "out", live, base_of("phi3"), "phi3")
    assert error < 1e-5 and effect > 1e-3
    assert surgery.verify(tmp_path / "a").ok


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"nblocks": 3, "target_modules_bd_a": ["q_proj"]}, "(4, 24) are not 3 blocks, one below the other"),
        ({"nblocks": 0, "target_modules_bd_a": ["q_proj"]}, "it is not said which factors are stored as blocks"),
        ({"nblocks": 2, "target_modules_bd_a": "q_proj"}, "it is not said which factors are stored as blocks"),
        (True, "use_bdlora = True, and not an object"),
        (
            {"nblocks": 2, "target_modules_bd_a": ["q_"], "target_modules_bd_b": ["q_proj"]},
            "A and B are both said to be stored as blocks",
        ),
        ({"nblocks": 2, "target_modules_bd_b": ["q_proj"]}, "the delta would be (40, 24), the base tensor is (40, 48)"),
    ],
)
def test_blocks_that_do_not_fit(said: Any, what: str, base_of: Bases, tmp_path: Path) -> None:
    trained(base_of("llama"), Case("llama", {"target_modules": ["q_proj"], "use_bdlora": Q_BLOCKS}), tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "use_bdlora": said}))
    with pytest.raises(AdapterError) as caught:
        merged(base_of("llama"), tmp_path / "a", tmp_path / "out")
    assert what in str(caught.value) or "adapter_config.json says rank 4" in str(caught.value)
