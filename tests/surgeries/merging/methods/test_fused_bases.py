"""Kinds besides LoRA on parts of what the base stores fused, and on the whole of what it stores apart."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import tiny_models
import torch
from conftest import hashes
from models.fused import stacks
from safetensors.torch import load_file, save_file

import surgery

IDS = tiny_models.inputs("llama")["input_ids"]
CONFIGS: dict[str, Callable[[list[str]], peft.PeftConfig]] = {
    "OFT": lambda names: peft.OFTConfig(oft_block_size=4, target_modules=names),
    "BOFT": lambda names: peft.BOFTConfig(boft_block_size=4, target_modules=names),
    "HRA": lambda names: peft.HRAConfig(r=2, target_modules=names),
    "MiSS": lambda names: peft.MissConfig(r=4, target_modules=names),
    "MiSS, bat": lambda names: peft.MissConfig(r=4, init_weights="bat", target_modules=names),
    "RoAd": lambda names: peft.RoadConfig(group_size=4, target_modules=names),
    "DeLoRA": lambda names: peft.DeloraConfig(r=2, target_modules=names),
    "DEFT": lambda names: peft.DeftConfig(r=2, target_modules=names),
    "PEANuT": lambda names: peft.PeanutConfig(r=2, target_modules=names),
    "HiRA": lambda names: peft.HiraConfig(r=2, target_modules=names),
    "GLoRA": lambda names: peft.GloraConfig(r=2, target_modules=names),
    "IA3": lambda names: peft.IA3Config(target_modules=names, feedforward_modules=[]),
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def phi() -> torch.nn.Module:
    """With numbers that bfloat16 has."""
    model = stacks.random(tiny_models.MODELS["phi3"]()).eval()
    for parameter in model.parameters():
        parameter.data.copy_(parameter.data.to(torch.bfloat16))
    return model  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def bases(phi: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Fused, in bfloat16, and apart."""
    folder = tmp_path_factory.mktemp("bases")
    copy.deepcopy(phi).to(torch.bfloat16).save_pretrained(folder / "fused", max_shard_size="20KB")  # type: ignore[operator]
    surgery.write(surgery.split_qkv(surgery.open_checkpoint(folder / "fused")), folder / "apart")
    return folder / "fused", folder / "apart"


def trained(model: torch.nn.Module, config: peft.PeftConfig, folder: Path) -> torch.nn.Module:
    """The live model, moved at random, and saved."""
    live = peft.get_peft_model(model, config)  # type: ignore[arg-type]
    made = torch.Generator().manual_seed(1)
    for parameter in live.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=made))
    live.save_pretrained(str(folder))
    return live


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_on_the_whole_it_is_merged_into_parts(
    name: str, phi: torch.nn.Module, bases: tuple[Path, Path], tmp_path: Path
) -> None:
    """Exactly what the merge into the whole makes of them, which is what the live model computes; and it is undone."""
    live = trained(copy.deepcopy(phi), CONFIGS[name](["qkv_proj"]), tmp_path / "adapter").eval()
    fused, apart = map(surgery.open_checkpoint, bases)
    adapter = surgery.open_adapter(tmp_path / "adapter")
    made = surgery.merge(apart, adapter)
    assert made.weight_map == apart.weight_map
    whole = surgery.split_qkv(surgery.merge(fused, adapter))
    assert all(torch.equal(made.load(key), whole.load(key)) for key in whole.tensors)
    again = surgery.fuse_qkv(surgery.merge(apart, adapter, dtype="float32"))
    surgery.write(again, tmp_path / "again")
    loaded = type(phi).from_pretrained(tmp_path / "again", dtype=torch.float32)  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted, base = live(input_ids=IDS).logits, phi(input_ids=IDS).logits
        error = (loaded(input_ids=IDS).logits - wanted).abs().max().item()
    assert error <= 1e-5 * wanted.abs().max().item() and (base - wanted).abs().max().item() > 1000 * error
    surgery.write(surgery.reversible(made, apart), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(bases[1])
    checks = surgery.verify(tmp_path / "out", base=bases[1], adapter=tmp_path / "adapter").checks
    assert [check.ok for check in checks if check.name in ("merge", "undo record")] == [True, True]


class Query(torch.nn.Module):
    """One part alone, as a module."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        self.q_proj.weight.data.copy_(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CONFIGS)
def test_trained_on_a_part_it_is_merged_into_the_whole(name: str, bases: tuple[Path, Path], tmp_path: Path) -> None:
    fused, apart = map(surgery.open_checkpoint, bases)
    key = "model.layers.0.self_attn.q_proj"
    before = apart.load(f"{key}.weight").float()
    live = trained(Query(before), CONFIGS[name](["q_proj"]), tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    named = {one.replace("model.q_proj", f"model.{key}", 1): tensor for one, tensor in load_file(file).items()}
    save_file(named, file)
    adapter = surgery.open_adapter(tmp_path / "adapter")
    parts = surgery.split_qkv(surgery.merge(fused, adapter, dtype="float32"))
    with torch.no_grad():
        wanted = live(torch.eye(before.shape[1])).T
    error = (parts.load(f"{key}.weight") - wanted).abs().max().item()
    assert error <= 1e-6 and (before - wanted).abs().max().item() > 1000 * error
    others = [one for one in apart.tensors if one != f"{key}.weight"]
    assert all(torch.equal(parts.load(one), apart.load(one).float()) for one in others)
    surgery.write(surgery.reversible(surgery.merge(fused, adapter), fused), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(bases[0])
