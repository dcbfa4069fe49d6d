"""Files that torch saved, to safetensors: time and peak memory, against `cp` and against loading and saving.

    python benchmarks/torch_files.py WORKDIR [RUNS]

2.2 GB of float32 in 132 tensors: as one `pytorch_model.bin`, and as a distributed checkpoint of one process.
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
import torch.distributed.checkpoint as dcp
tensors = {f"model.layers.{i // 4}.w{i % 4}.weight": torch.randn(2048, 2048) for i in range(132)}
torch.save(tensors, f"{sys.argv[1]}/bin/pytorch_model.bin")
dcp.save({"model": tensors}, checkpoint_id=f"{sys.argv[1]}/dcp", no_dist=True)
"""
LOAD = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True, mmap=True), sys.argv[2], {"format": "pt"})
"""
JOIN = """
import sys, torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], f"{sys.argv[2]}.pt")
save_file(torch.load(f"{sys.argv[2]}.pt", weights_only=True, mmap=True)["model"], sys.argv[2], {"format": "pt"})
"""


def main() -> None:
    """Print a table."""
    work, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    (work / "bin").mkdir(parents=True, exist_ok=True)
    if not (work / "dcp/.metadata").exists():
        subprocess.run([sys.executable, "-c", MAKE, str(work)], check=True)
    out = work / "out"
    ways: dict[str, list[str]] = {
        "surgery reshard, .bin": [
            *SURGERY,
            "reshard",
            str(work / "bin"),
            "-o",
            str(out),
            "--max-shard-size",
            "5GB",
            "--quiet",
        ],
        "torch.load and save_file": [sys.executable, "-c", LOAD, str(work / "bin/pytorch_model.bin"), f"{out}.st"],
        "surgery reshard, DCP": [
            *SURGERY,
            "reshard",
            str(work / "dcp"),
            "-o",
            str(out),
            "--max-shard-size",
            "5GB",
            "--quiet",
        ],
        "dcp_to_torch_save, torch.load, save_file": [sys.executable, "-c", JOIN, str(work / "dcp"), f"{out}.st"],
        "cp": ["cp", str(work / "bin/pytorch_model.bin"), f"{out}.st"],
    }
    found: dict[str, list[tuple[float, int]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, command in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            for left in work.glob("out.st*"):
                left.unlink()
            run = measured(command)
            found[way].append((run.seconds, run.peak))
    print("| way | seconds, median | peak memory |\n|---|---|---|")
    for way, made in found.items():
        seconds, peak = statistics.median(s for s, _ in made), max(p for _, p in made)
        print(f"| {way} | {seconds:.1f} | {peak / 1e6:.0f} MB |")


if __name__ == "__main__":
    main()
