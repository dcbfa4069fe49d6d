"""One adapter of several, judged by PEFT: the live model with all of them on, weighted, in float64; and its own
`add_weighted_adapter`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from models.fused import stacks
from safetensors.torch import load_file, save_file

import surgery
from surgery.errors import AdapterError, NotSupported, SurgeryError

ATTENTION = ["q_proj", "v_proj"]
WEIGHTS = [0.7, -1.3]


def output(model: Any, family: str) -> torch.Tensor:
    """What the model computes in float64."""
    model = model.double().eval()
    torch.set_default_dtype(torch.float64)
    try:
        return tiny_models.output(model, family)
    finally:
        torch.set_default_dtype(torch.float32)


def trained(family: str, config: peft.PeftConfig, seed: int) -> Any:
    """The family's model with an adapter of random factors."""
    return randomised(peft.get_peft_model(tiny_models.build(family), config), seed)


def randomised(model: Any, seed: int) -> Any:
    """An adapted model with random factors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name or "trainable_tokens" in name or parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def made(family: str, folder: Path, options: Sequence[Mapping[str, Any]]) -> list[Path]:
    """Adapters as PEFT saves them."""
    paths = []
    for seed, row in enumerate(options):
        config = row["config"] if "config" in row else peft.LoraConfig(**{"r": 4, "target_modules": ATTENTION, **row})
        trained(family, config, seed).save_pretrained(folder / str(seed))
        paths.append(folder / str(seed))
    return paths


def live(family: str, paths: Sequence[Path], weights: Sequence[float]) -> torch.Tensor:
    """What the live model computes with all adapters on, each layer's scale times its weight, in float64."""
    model = peft.PeftModel.from_pretrained(tiny_models.build(family), paths[0], adapter_name="0")
    for i, path in enumerate(paths[1:], 1):
        model.load_adapter(path, adapter_name=str(i))
    model.base_model.set_adapter([str(i) for i in range(len(paths))])
    for module in model.modules():
        if isinstance(module, peft.tuners.lora.LoraLayer):
            for i, weight in enumerate(weights):
                if str(i) in module.scaling:
                    module.scaling[str(i)] *= weight
    return output(model, family)


def one(family: str, path: Path) -> torch.Tensor:
    """What the live model with the one adapter computes, in float64: PEFT loads it, and misses nothing."""
    model = peft.PeftModel.from_pretrained(tiny_models.build(family), path)
    stored = load_file(path / "adapter_model.safetensors")
    expected = peft.get_peft_model_state_dict(model)
    copies = {name for name in stored if name.endswith(".base_layer.weight")}  # which PEFT saves or not as it likes
    assert stored.keys() - copies == expected.keys() - copies
    for name in stored.keys() - copies:
        assert torch.equal(expected[name].float(), stored[name].float()), name
    return output(model, family)


def combined(paths: Sequence[Path], out: Path, weights: Sequence[float] | None, **options: Any) -> surgery.Report:
    return surgery.write(surgery.combine([surgery.open_adapter(path) for path in paths], weights, **options), out)


def compare(family: str, got: torch.Tensor, wanted: torch.Tensor, *, limit: float = 1e-6) -> None:
    base = output(tiny_models.build(family), family)
    error, effect = (got - wanted).abs().max().item(), (wanted - base).abs().max().item()
    assert error <= limit * wanted.abs().max().item(), error
    assert effect >= 1000 * error, f"an effect of {effect} proves nothing against an error of {error}"


GPT2 = {"target_modules": ["c_attn"], "fan_in_fan_out": True}
ROWS = {
    "ranks, rsLoRA and patterns": (
        "llama",
        {"lora_alpha": 6, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 9}},
        {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": r".*\.(v_proj|down_proj)"},
    ),
    "layers of which only one has LoRA": ("llama", {}, {"layers_to_transform": [1]}),
    "Conv1D": ("gpt2", GPT2, {**GPT2, "target_modules": ["c_attn", "c_proj"]}),
    "embeddings": (
        "llama",
        {"target_modules": ["embed_tokens", "q_proj"]},
        {"r": 2, "target_modules": ["embed_tokens"]},
    ),
    "convolutions": (
        "sam",
        {"target_modules": ["projection", "qkv"]},
        {"r": 2, "target_modules": ["projection", "proj"]},
    ),
    "a bias of B": (
        "bert",
        {"target_modules": ["query"], "lora_bias": True, "lora_alpha": 3},
        {"target_modules": ["query", "value"]},
    ),
    "AdaLoRA": (
        "llama",
        {"config": peft.AdaLoraConfig(init_r=5, target_r=3, total_step=10, target_modules=ATTENTION)},
        {"lora_alpha": 3},
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_result_computes_what_the_weighted_adapters_compute(name: str, tmp_path: Path) -> None:
    family, *rows = ROWS[name]
    paths = made(family, tmp_path, rows)
    if name == "AdaLoRA":  # PEFT mixes no kinds: its own LoRA of the same values stands for it
        alone = surgery.combine([surgery.open_adapter(paths[0])])
        surgery.write(alone, tmp_path / "plain")
        model = peft.PeftModel.from_pretrained(tiny_models.build(family), paths[0])
        compare(family, one(family, tmp_path / "plain"), output(model, family))
        paths[0] = tmp_path / "plain"
    combined(paths, tmp_path / "out", WEIGHTS)
    compare(family, one(family, tmp_path / "out"), live(family, paths, WEIGHTS))


def deltas(model: Any) -> dict[str, torch.Tensor]:
    """What PEFT itself says that each of its layers adds, in float64, by module and parameter."""
    found = {}
    for name, layer in model.double().named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            key = f"{name.replace('.base_layer', '')}.{getattr(layer, 'parameter_name', 'weight')}"
            found[key] = layer.get_delta_weight("default")
    return found


def test_experts_are_stacked_one_by_one(tmp_path: Path) -> None:
    """LoRA on all experts' parameters at once: on both in one adapter, on one in the other."""
    both = ["experts.gate_up_proj", "experts.down_proj"]
    rows = [{"target_parameters": both, "lora_alpha": 7}, {"target_parameters": both[1:], "r": 2}]
    singles = []
    for seed, row in enumerate(rows):
        lora = peft.LoraConfig(**{"r": 3, "target_modules": ["q_proj"], **row})
        model = randomised(peft.get_peft_model(stacks.build("qwen3_moe"), lora), seed)
        model.save_pretrained(tmp_path / str(seed))
        singles.append(deltas(model))
    assert len(singles[0]) > len(singles[1])
    combined([tmp_path / "0", tmp_path / "1"], tmp_path / "out", WEIGHTS)
    model = peft.PeftModel.from_pretrained(stacks.build("qwen3_moe"), tmp_path / "out")
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert stored.keys() == peft.get_peft_model_state_dict(model).keys()
    found = deltas(model)
    assert found.keys() == singles[0].keys()
    for name, delta in found.items():
        wanted = sum(w * one[name] for w, one in zip(WEIGHTS, singles, strict=True) if name in one)
        assert (delta - wanted).abs().max() < 1e-6 < 1e-2 < delta.abs().max(), name


def test_peft_stacks_the_same(tmp_path: Path) -> None:
    """`add_weighted_adapter` with "cat" and positive weights, which it takes roots of no more than we do."""
    paths = made("llama", tmp_path, [{"lora_alpha": 6}, {"r": 3, "use_rslora": True}])
    model = peft.PeftModel.from_pretrained(tiny_models.build("llama"), paths[0], adapter_name="0")
    model.load_adapter(paths[1], adapter_name="1")
    model.add_weighted_adapter(["0", "1"], [0.7, 0.3], "both", combination_type="cat")
    model.set_adapter("both")
    combined(paths, tmp_path / "out", [0.7, 0.3])
    compare("llama", one("llama", tmp_path / "out"), output(model, "llama"))


def test_a_common_scale_stands_in_alpha_and_nothing_is_computed(tmp_path: Path) -> None:
    """Two adapters of one scale and weight: every number of the result is one of theirs."""
    paths = made("llama", tmp_path, [{"lora_alpha": 6}, {"r": 2, "lora_alpha": 3}])
    report = combined(paths, tmp_path / "out", [0.5, 0.5])
    assert not report.computed
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (6, 4.5)
    compare("llama", one("llama", tmp_path / "out"), live("llama", paths, [0.5, 0.5]))


def test_what_one_adapter_holds_whole_is_taken_over(tmp_path: Path) -> None:
    """Trained biases, a saved module and trained tokens, each of the only adapter that has it."""
    rows = [
        {"target_modules": ["query"], "bias": "lora_only"},
        {"target_modules": ["value"], "modules_to_save": ["qa_outputs"]},
    ]
    paths = made("bert", tmp_path, rows)
    combined(paths, tmp_path / "out", None)
    merged = surgery.merge(open_base("bert", tmp_path), surgery.open_adapter(tmp_path / "out"))
    both = [surgery.open_adapter(path) for path in paths]
    wanted = surgery.merge(open_base("bert", tmp_path), both)
    for name in wanted.tensors:
        assert torch.allclose(merged.load(name), wanted.load(name), atol=1e-6), name
    stored = load_file(tmp_path / "out" / "adapter_model.safetensors")
    model = peft.PeftModel.from_pretrained(tiny_models.build("bert"), tmp_path / "out")
    missing = peft.get_peft_model_state_dict(model).keys() - stored.keys()  # the base's own biases of `value`
    assert all(name.endswith("value.base_layer.bias") for name in missing) and len(missing) == 3
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["bias"], config["modules_to_save"]) == ("lora_only", ["qa_outputs"])


def open_base(family: str, folder: Path) -> surgery.Checkpoint:
    if not (folder / "base").exists():
        tiny_models.build(family).save_pretrained(folder / "base")
    return surgery.open_checkpoint(folder / "base")


def test_trained_tokens_are_taken_over(tmp_path: Path) -> None:
    paths = made("llama", tmp_path, [{"trainable_token_indices": [3, 8]}, {"r": 2}])
    combined(paths, tmp_path / "out", [1, 0.5])
    base = open_base("llama", tmp_path)
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "out"))
    wanted = surgery.merge(base, [surgery.open_adapter(path) for path in paths], [1, 0.5])
    table = wanted.load("model.embed_tokens.weight")
    assert torch.equal(merged.load("model.embed_tokens.weight"), table)
    assert not torch.equal(base.load("model.embed_tokens.weight"), table)
    one("llama", tmp_path / "out")


def test_a_combination_in_memory_is_the_one_on_the_disk(tmp_path: Path) -> None:
    """What `combine` gives can be merged as it is; and combining is associative."""
    paths = made("llama", tmp_path, [{"lora_alpha": 6}, {"r": 3, "use_rslora": True}, {"r": 2}])
    first, second, third = (surgery.open_adapter(path) for path in paths)
    base = open_base("llama", tmp_path)
    wanted = surgery.merge(base, [first, second, third], [2, -0.5, 0.25])
    nested = surgery.combine([surgery.combine([first, second], [4, -1]), third], [0.5, 0.25])
    for made_of in (nested, surgery.combine([first, second, third], [2, -0.5, 0.25])):
        merged = surgery.merge(base, made_of)
        for name in wanted.tensors:
            assert torch.allclose(merged.load(name), wanted.load(name), atol=1e-6), name


def test_averaged_factors_are_said_to_be_none_of_the_effects(tmp_path: Path) -> None:
    """As AdapterHub's `average_adapter` does it, under its own name."""
    paths = made("llama", tmp_path, [{"lora_alpha": 6}, {"lora_alpha": 6}])
    report = combined(paths, tmp_path / "out", [0.75, 0.25], average_factors=True)
    assert any("not the average of what the adapters add" in note for note in report.notes)
    a, b, c = (load_file(path / "adapter_model.safetensors") for path in (*paths, tmp_path / "out"))
    for name in c:
        assert torch.allclose(c[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-6), name
    one("llama", tmp_path / "out")


@pytest.mark.parametrize("row", [{}, {"lora_alpha": 3}, {"use_rslora": True}])
def test_what_cancels_out_is_nothing_and_no_share_of_noise(row: Mapping[str, Any], tmp_path: Path) -> None:
    """An adapter less itself, whose alpha may be another: rounding's remains are no singular values."""
    paths = made("llama", tmp_path, [{}, row])
    file = paths[1] / "adapter_model.safetensors"
    first = load_file(paths[0] / "adapter_model.safetensors")
    scales = [surgery.open_adapter(path).config for path in paths]
    ratio = 1.0
    one_scale, other_scale = (
        config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"]) for config in scales
    )
    ratio = one_scale / other_scale
    save_file({name: one * (ratio if "lora_B" in name else 1) for name, one in first.items()}, file)
    report = combined(paths, tmp_path / "out", [1, -1], rank=2)
    kept = report.costs["kept"]
    count = len(kept)
    assert any(f"{count} modules add nothing, or what cancels out, and are zero" in note for note in report.notes)
    assert not any("keeps" in note for note in report.notes)
    after = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(not one.any() for name, one in after.items() if "lora_B" in name)
    assert all(one["share"] == 1 and one["following"] == 0 for one in kept.values())


def test_what_nearly_cancels_out_keeps_what_is_left(tmp_path: Path) -> None:
    """A thousandth more of one module: that is what there is."""
    paths = made("llama", tmp_path, [{}, {}])
    file, first = paths[1] / "adapter_model.safetensors", load_file(paths[0] / "adapter_model.safetensors")
    save_file({name: one * (1.001 if "lora_B" in name else 1) for name, one in first.items()}, file)
    combined(paths, tmp_path / "out", [-1, 1], rank=4)
    wanted, found = (
        deltas(peft.PeftModel.from_pretrained(tiny_models.build("llama"), p)) for p in (paths[0], tmp_path / "out")
    )
    for name, one in wanted.items():
        assert (found[name] - 0.001 * one).norm() <= 1e-3 * (0.001 * one).norm(), name


# Refusals


def refused(
    folder: Path, rows: Sequence[Mapping[str, Any]], weights: Sequence[float] | None = None, **options: Any
) -> Any:
    paths = made("llama", folder, rows)
    with pytest.raises(SurgeryError) as caught:
        surgery.combine([surgery.open_adapter(path) for path in paths], weights, **options)
    return caught.value


def test_dora_has_no_sum(tmp_path: Path) -> None:
    error = refused(tmp_path, [{"use_dora": True}, {}])
    assert isinstance(error, NotSupported)
    assert error.what == "DoRA gives the rows of a weight new lengths, and lengths of two adapters have no sum"
    assert error.where == (f"{tmp_path}/0/adapter_config.json",)


def test_kinds_that_are_not_low_rank_are_named(tmp_path: Path) -> None:
    error = refused(tmp_path, [{"config": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])}, {}])
    assert isinstance(error, NotSupported) and "IA3" in error.what


def test_weights_are_one_for_each(tmp_path: Path) -> None:
    assert refused(tmp_path, [{}, {}], [1]).what == "1 weights for 2 adapters"
    with pytest.raises(SurgeryError, match="not all finite"):
        surgery.combine([surgery.open_adapter(tmp_path / "0")], [float("nan")])
    with pytest.raises(SurgeryError, match="nothing to combine"):
        surgery.combine([])


def test_adapters_of_different_bases_are_refused(tmp_path: Path) -> None:
    paths = made("llama", tmp_path, [{}, {}])
    for path, name in zip(paths, ("org/small", "/models/large/"), strict=True):
        config = json.loads((path / "adapter_config.json").read_text())
        (path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": name}))
    opened = [surgery.open_adapter(path) for path in paths]
    with pytest.raises(AdapterError, match="the adapters were trained on different bases") as caught:
        surgery.combine(opened)
    assert caught.value.where[1] == f"{paths[1]}: base_model_name_or_path = '/models/large/'"
    assert "--any-base" in (caught.value.help or "")
    assert surgery.combine(opened, any_base=True).lora


def test_adapters_of_other_shapes_are_refused(tmp_path: Path) -> None:
    """One of a base of other sizes: the module is named, with both shapes."""
    paths = made("llama", tmp_path, [{}, {}])
    file = paths[1] / "adapter_model.safetensors"
    save_file({n: t[:, :-1].contiguous() if "lora_A" in n else t for n, t in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match=r"do not fit each other on model\.layers\.0\.self_attn\.q_proj") as caught:
        surgery.combine([surgery.open_adapter(path) for path in paths])
    assert "(4, 47)" in caught.value.where[1]


def test_tokens_of_what_another_holds_whole_are_refused(tmp_path: Path) -> None:
    """PEFT loads no adapter of both, and merge takes no two that replace one tensor."""
    error = refused(tmp_path, [{"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [3, 5]}], [1, 1])
    assert error.what == "one adapter holds embed_tokens whole, and one trains tokens of it"


def test_what_is_held_whole_has_no_part(tmp_path: Path) -> None:
    """A saved module with a weight; two of them that differ; different tokens."""
    error = refused(tmp_path / "a", [{"modules_to_save": ["lm_head"]}, {}], [0.5, 1])
    assert error.what.endswith("0 holds lm_head.weight whole, which takes the base's place, and has no part of 0.5")
    error = refused(tmp_path / "b", [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}])
    assert error.what.startswith("two adapters hold lm_head.weight whole, and not the same")
    rows = [{"trainable_token_indices": [1, 2]}, {"trainable_token_indices": [1, 3]}]
    assert "trainable_tokens_delta whole, and not the same" in refused(tmp_path / "c", rows).what


def test_averages_of_other_ranks_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, [{"r": 2}, {"r": 4}], [0.5, 0.5], average_factors=True)
    assert "cannot be averaged apart" in error.what and "--average-factors" in error.help


def test_nan_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    paths = made("llama", tmp_path, [{}, {}])
    file = paths[1] / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file)
    with pytest.raises(AdapterError, match="NaN or infinity"):
        combined(paths, tmp_path / "out", [0.7, 0.3])
    with pytest.raises(AdapterError, match="NaN or infinity"):
        combined(paths, tmp_path / "out", [0.7, 0.3], rank=2)
    assert not (tmp_path / "out").exists()
