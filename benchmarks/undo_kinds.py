"""How large the undo record of each kind of adapter is, and that it restores.

    python benchmarks/undo_kinds.py WORKDIR [SIZE]

A base of two square matrices of SIZE (512 if not given) in bfloat16, and each kind of PEFT's on both, as PEFT makes and
saves it, its numbers moved at random. The record is given as a share of the merged tensors' bytes, without the adapter
that it keeps; the exact restoration is checked by hash.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from safetensors.torch import save_file
from undo import restored

KINDS: dict[str, Callable[[], peft.PeftConfig]] = {
    "LoRA": lambda: peft.LoraConfig(r=8),
    "LoHa": lambda: peft.LoHaConfig(r=8),
    "LoKr": lambda: peft.LoKrConfig(r=8),
    "VeRA": lambda: peft.VeraConfig(r=32),
    "VB-LoRA": lambda: peft.VBLoRAConfig(r=4, num_vectors=64, vector_length=64),
    "RandLoRA": lambda: peft.RandLoraConfig(r=32),
    "GraLoRA": lambda: peft.GraloraConfig(r=32),
    "DeLoRA": lambda: peft.DeloraConfig(r=8),
    "MiSS": lambda: peft.MissConfig(r=32),
    "MiSS, bat": lambda: peft.MissConfig(r=32, init_weights="bat"),
    "C3A": lambda: peft.C3AConfig(block_size=64),
    "FourierFT": lambda: peft.FourierFTConfig(n_frequency=1000),
    "WaveFT": lambda: peft.WaveFTConfig(n_frequency=1000),
    "SHiRA": lambda: peft.ShiraConfig(r=8),
    "Super-Tuning": lambda: peft.SupertuningConfig(sparsity=0.99),
    "IA3": lambda: peft.IA3Config(feedforward_modules=["b"]),
    "HiRA": lambda: peft.HiraConfig(r=8),
    "GLoRA": lambda: peft.GloraConfig(r=8),
    "RoAd": lambda: peft.RoadConfig(group_size=64),
    "OFT": lambda: peft.OFTConfig(oft_block_size=32),
    "BOFT": lambda: peft.BOFTConfig(boft_block_size=8),
    "HRA": lambda: peft.HRAConfig(r=8),
    "DEFT": lambda: peft.DeftConfig(r=8),
    "PEANuT": lambda: peft.PeanutConfig(r=8),
}


def base(folder: Path, size: int) -> torch.nn.Module:
    """A model of two linear layers, and its checkpoint."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(size, size) for name in "ab"})
    folder.mkdir(parents=True)
    for parameter in model.parameters():
        parameter.data = (torch.randn(parameter.shape) * 0.02).bfloat16().float()
    save_file({name: t.bfloat16() for name, t in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    return model


def adapter(model: torch.nn.Module, config: peft.PeftConfig, folder: Path) -> None:
    """The kind's adapter on both, moved at random."""
    config.target_modules = {"a", "b"}  # type: ignore[attr-defined]
    tuned = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape)
    tuned.save_pretrained(str(folder))


def shares(work: Path, size: int, config: peft.PeftConfig) -> tuple[float, float]:
    """Bytes of the record, and of the adapter in it, per byte of merged weights. Raises where the base does not come
    back.
    """
    shutil.rmtree(work, ignore_errors=True)
    adapter(base(work / "base", size), config, work / "adapter")
    record, kept, whole = restored(work)
    return record / whole, min(kept, record) / whole


def main() -> None:
    """Print the table."""
    work, size = Path(sys.argv[1]) / "undo", int(sys.argv[2]) if len(sys.argv) > 2 else 512
    print("| kind | record | the adapter |\n| --- | --- | --- |")
    for name, config in KINDS.items():
        record, kept = shares(work, size, config())
        print(f"| {name} | {record:.1%} | {kept:.1%} |", flush=True)
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
