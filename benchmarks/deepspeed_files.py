"""Checkpoints of DeepSpeed's ZeRO, to safetensors: time and peak memory, against DeepSpeed's own converter.

    python benchmarks/deepspeed_files.py WORKDIR PYTHON [RUNS]

2.2 GB of float32 masters in 132 tensors on four ranks, laid out as stages 2 and 3 lay them; PYTHON has deepspeed.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from measure import measured
from run import SURGERY

MAKE = """
import sys, torch
from collections import OrderedDict
from pathlib import Path
torch.manual_seed(0)
names, size, ranks = [f"model.layers.{i // 4}.w{i % 4}.weight" for i in range(132)], 2048 * 2048, 4
shapes = [OrderedDict((name, torch.Size([2048, 2048])) for name in names)]
common = {"buffer_names": [], "param_shapes": shapes, "shared_params": {}, "ds_version": "0.19.8", "global_steps": 1}
flat = torch.randn(132 * size)
for stage in (2, 3):
    place = Path(sys.argv[1], f"stage{stage}/global_step1")
    place.mkdir(parents=True)
    (place.parent / "latest").write_text("global_step1")
    for rank in range(ranks):
        held = {"zero_stage": stage, "partition_count": ranks if stage == 3 else [ranks]}
        if stage == 2:
            part = flat[rank * flat.numel() // ranks :][: flat.numel() // ranks].clone()
            held |= {"single_partition_of_fp32_groups": [part], "base_optimizer_state": {}}
        else:
            part = flat.view(132, ranks, size // ranks)[:, rank].reshape(-1).clone()
            held |= {"fp32_flat_groups": [part], "optimizer_state_dict": {}}
            copy = {"module": {name: torch.empty(0) for name in names}, **common}
            torch.save(copy, place / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": held}, place / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    if stage == 2:
        weights = {name: flat[i * size : (i + 1) * size].bfloat16().view(2048, 2048) for i, name in enumerate(names)}
        torch.save({"module": weights, **common}, place / "mp_rank_00_model_states.pt")
"""
CONVERT = """
import os, sys
os.environ.update(DS_ACCELERATOR="cpu", DS_BUILD_OPS="0")
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
convert_zero_checkpoint_to_fp32_state_dict(sys.argv[1], sys.argv[2], max_shard_size=None, safe_serialization=True)
"""
EQUAL = """
import sys
from safetensors import safe_open
one, other = (safe_open(f"{place}/model.safetensors", "pt") for place in sys.argv[1:])
assert sorted(one.keys()) == sorted(other.keys())
assert all(one.get_tensor(name).equal(other.get_tensor(name)) for name in one.keys())
"""


def main() -> None:
    """Print a table."""
    work, python, runs = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 3
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "stage3").exists():
        subprocess.run([sys.executable, "-c", MAKE, str(work)], check=True)
    ours, theirs = work / "ours", work / "theirs"
    ways: dict[str, list[str]] = {}
    for stage in (2, 3):
        place = str(work / f"stage{stage}")
        reshard = [*SURGERY, "reshard", place, "-o", str(ours), "--max-shard-size", "5GB", "--quiet"]
        ways[f"surgery reshard, ZeRO-{stage}"] = reshard
        ways[f"DeepSpeed's converter, ZeRO-{stage}"] = [python, "-c", CONVERT, place, str(theirs)]
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, command in ways.items():
            shutil.rmtree(ours if command[0] != python else theirs, ignore_errors=True)
            run = measured(command)
            found[way].append((run.seconds, run.peak))
            if command[0] == python:
                subprocess.run([sys.executable, "-c", EQUAL, str(ours), str(theirs)], check=True)
    print("| way | seconds, median | peak memory |\n|---|---|---|")
    for way, made in found.items():
        seconds, peak = statistics.median(s for s, _ in made), max(p for _, p in made)
        print(f"| {way} | {seconds:.1f} | {peak / 1e6:.0f} MB |")


if __name__ == "__main__":
    main()
