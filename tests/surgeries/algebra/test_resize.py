"""Other ranks, against the singular value decomposition of the whole matrices in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from models.fused import stacks
from safetensors.torch import load_file, save_file
from surgeries.algebra.test_combine import combined, deltas, made, one, output, randomised

import surgery
from surgery.errors import AdapterError, SurgeryError
from surgery.surgeries.algebra.ranks import Choice, percent


def opened(path: Path, family: str = "llama") -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight, as PEFT says, in float64."""
    return deltas(peft.PeftModel.from_pretrained(tiny_models.build(family), path))


def best(delta: torch.Tensor, rank: int) -> torch.Tensor:
    """The best approximation of a matrix, of a convolution as (out, in * k...)."""
    u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
    return ((u[:, :rank] * s[:rank]) @ v[:rank]).view_as(delta)


CASES = {
    "rsLoRA and patterns": (
        "llama",
        {"r": 8, "use_rslora": True, "rank_pattern": {"v_proj": 2, "layers.1.self_attn.q_proj": 5}},
    ),
    "Conv1D": ("gpt2", {"r": 8, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "embeddings": ("llama", {"r": 8, "target_modules": ["embed_tokens"]}),
    "convolutions": ("sam", {"r": 8, "target_modules": ["projection"]}),
    "a bias of B": ("bert", {"r": 8, "target_modules": ["query"], "lora_bias": True, "lora_alpha": 3}),
    "AdaLoRA": (
        "llama",
        {"config": peft.AdaLoraConfig(init_r=8, target_r=3, total_step=10, target_modules=["q_proj"])},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_module_is_the_best_of_its_rank(name: str, tmp_path: Path) -> None:
    """No approximation of that rank is nearer; what has the rank already stays, byte for byte."""
    family, row = CASES[name]
    (path,) = made(family, tmp_path, [row])
    report = surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=3), tmp_path / "out")
    before, after = (
        adalora(path, tmp_path, family) if name == "AdaLoRA" else opened(path, family),
        opened(tmp_path / "out", family),
    )
    assert before.keys() == after.keys()
    for module, delta in before.items():
        wanted = best(delta, 3)
        least = float((delta - wanted).norm())
        assert float((delta - after[module]).norm()) <= least * (1 + 1e-9) + 1e-6 * float(delta.norm()), module
        kept: Any = report.costs["kept"]
        share = kept[module.removeprefix("base_model.model.").removesuffix(".weight")]["share"]
        assert share == pytest.approx(1 - (least / float(delta.norm())) ** 2, abs=1e-6)
    one(family, tmp_path / "out")


def adalora(path: Path, folder: Path, family: str) -> dict[str, torch.Tensor]:
    surgery.write(surgery.combine([surgery.open_adapter(path)]), folder / "plain")
    return opened(folder / "plain", family)


def test_what_has_the_rank_stays(tmp_path: Path) -> None:
    (path,) = made("llama", tmp_path, [{"r": 4, "lora_alpha": 6}])
    surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=9), tmp_path / "out")
    a, b = (load_file(p / "adapter_model.safetensors") for p in (path, tmp_path / "out"))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_experts_have_one_rank(tmp_path: Path) -> None:
    """Each expert's matrix is approximated by itself."""
    lora = peft.LoraConfig(r=4, target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"])
    model = randomised(peft.get_peft_model(stacks.build("qwen3_moe"), lora), 1)
    model.save_pretrained(tmp_path / "0")
    before = deltas(model)
    surgery.write(surgery.resize_adapter(surgery.open_adapter(tmp_path / "0"), rank=2), tmp_path / "out")
    after = deltas(peft.PeftModel.from_pretrained(stacks.build("qwen3_moe"), tmp_path / "out"))
    for name, delta in before.items():
        wanted = torch.stack([best(expert, 2) for expert in delta])
        assert (after[name] - wanted).abs().max() < 1e-5 < 1e-2 < (delta - wanted).abs().max()


def test_energy_keeps_what_it_says(tmp_path: Path) -> None:
    """The least rank for each module that keeps the share, and no more than the most."""
    (path,) = made("llama", tmp_path, [{"r": 8}])
    surgery.write(surgery.resize_adapter(surgery.open_adapter(path), energy=0.9), tmp_path / "out")
    before, after = opened(path), opened(tmp_path / "out")
    for name, delta in before.items():
        shares = torch.linalg.svdvals(delta).square().cumsum(0)
        rank = int((shares < 0.9 * shares[-1]).sum()) + 1
        assert torch.linalg.matrix_rank(after[name], rtol=1e-6) == rank
    few = surgery.resize_adapter(surgery.open_adapter(path), energy=0.9, max_rank=2)
    assert few.config["r"] == 2 and not few.config["rank_pattern"]


def test_dora_keeps_its_lengths(tmp_path: Path) -> None:
    """What B @ A adds is approximated: of all of its rank, nothing changes."""
    (path,) = made("llama", tmp_path, [{"r": 4, "use_dora": True}])
    file = path / "adapter_model.safetensors"
    tensors = {n: (t[:, :2] @ torch.eye(2, 4)).contiguous() if "lora_B" in n else t for n, t in load_file(file).items()}
    save_file(tensors, file)
    surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=2), tmp_path / "out")
    wanted = output(peft.PeftModel.from_pretrained(tiny_models.build("llama"), path), "llama")
    assert (one("llama", tmp_path / "out") - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_the_best_of_a_sum_is_pefts_svd(tmp_path: Path) -> None:
    """`add_weighted_adapter` with "svd" decomposes whole matrices for it."""
    paths = made("llama", tmp_path, [{"lora_alpha": 6}, {"r": 3, "use_rslora": True}])
    model = peft.PeftModel.from_pretrained(tiny_models.build("llama"), paths[0], adapter_name="0").double()
    model.load_adapter(paths[1], adapter_name="1")
    model = model.double()
    model.add_weighted_adapter(["0", "1"], [0.7, 0.3], "both", combination_type="svd", svd_rank=4)
    model.set_adapter("both")
    report = combined(paths, tmp_path / "out", [0.7, 0.3], rank=4)
    wanted = output(model, "llama")
    assert (one("llama", tmp_path / "out") - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert any(note.startswith("q_proj ×3: rank 4 keeps ") for note in report.notes)
    assert report.history[-1] == {"surgery": "resize_adapter", "rank": 4}


def test_the_same_call_gives_the_same_bytes(tmp_path: Path) -> None:
    (path,) = made("llama", tmp_path, [{"r": 8}])
    for out in ("a", "b"):
        surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=3), tmp_path / out)
    assert hashes(tmp_path / "a", without=()) == hashes(tmp_path / "b", without=())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({}, "which rank is not said, or twice"),
        ({"rank": 2, "energy": 0.5}, "which rank is not said, or twice"),
        ({"rank": 0}, "a rank of 0 is none"),
        ({"rank": 2.5}, "a rank of 2.5 is none"),
        ({"energy": 1.5}, "an energy of 1.5 is no share"),
        ({"energy": 0.5, "max_rank": -1}, "a max_rank of -1 is none"),
        ({"rank": 2, "max_rank": 3}, "--max-rank is for --energy"),
    ],
)
def test_a_rank_that_is_none(options: dict[str, Any], what: str, tmp_path: Path) -> None:
    (path,) = made("llama", tmp_path, [{}])
    with pytest.raises(SurgeryError) as caught:
        surgery.resize_adapter(surgery.open_adapter(path), **options)
    assert caught.value.what == what


def test_nan_is_named(tmp_path: Path) -> None:
    (path,) = made("llama", tmp_path, [{"r": 8}])
    file = path / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"][0, 0] = float("inf")
    save_file(tensors, file)
    with pytest.raises(AdapterError, match="NaN or infinity in the factors of a module") as caught:
        surgery.resize_adapter(surgery.open_adapter(path), rank=2)
    assert "layers.1.self_attn.v_proj.lora_" in caught.value.where[0]


def test_an_untrained_adapter_keeps_all_of_nothing() -> None:
    assert Choice(None, 0.9, None)([0.0, 0.0], 0.0) == 1
    assert [percent(share) for share in (1.0, 0.99996, 0.5)] == [">99.99 %", ">99.99 %", "50.00 %"]


def test_the_config_says_the_ranks(tmp_path: Path) -> None:
    (path,) = made("llama", tmp_path, [{"r": 8, "lora_alpha": 12, "use_rslora": True}])
    surgery.write(surgery.resize_adapter(surgery.open_adapter(path), rank=2), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (config["r"], config["use_rslora"]) == (2, False)
    assert config["lora_alpha"] / 2 == pytest.approx(12 / 8**0.5)
