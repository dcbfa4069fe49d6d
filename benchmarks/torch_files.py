"""Files that torch saved, to safetensors: time, CPU, peak memory and bytes read, against `cp` and torch's own ways.

    python benchmarks/torch_files.py WORKDIR [RUNS] [CASE ...]

Cases: `bin`, 2.2 GB of float32 in 132 tensors; `one`, a tensor of 2 GB; `many`, 100,000 tensors in one file; `dcp`, the
2.2 GB as a distributed checkpoint of four ranks; `chunks`, 25,000 tensors of four ranks, a chunk of each. Without
RUNS, three of each way in turn. What is there in WORKDIR from before is used again.
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
def named(count, *shape):
    return {f"model.layers.{i // 4}.w{i % 4}.weight": torch.randn(*shape) for i in range(count)}
made = {
    "bin": lambda: named(132, 2048, 2048),
    "one": lambda: {"weight": torch.randn(500_000_000)},
    "many": lambda: named(100_000, 8, 16),
}
torch.save(made[sys.argv[1]](), sys.argv[2])
"""
RANKS = """
import os, sys, torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

def save(rank, folder, count, rows, columns):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=4)
    mesh = init_device_mesh("cpu", (4,))
    model = {
        f"model.layers.{i // 4}.w{i % 4}.weight": DTensor.from_local(
            torch.randn(rows // 4, columns), mesh, [Shard(0)], run_check=False
        )
        for i in range(count)
    }
    dcp.save({"model": model}, checkpoint_id=folder)
    dist.destroy_process_group()

if __name__ == "__main__":
    sizes = {"dcp": (132, 2048, 2048), "chunks": (25_000, 32, 4)}[sys.argv[1]]
    mp.spawn(save, (sys.argv[2], *sizes), nprocs=4)
"""
LOAD = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2], {"format": "pt"})
"""
JOIN = """
import sys, torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
dcp_to_torch_save(sys.argv[1], f"{sys.argv[2]}.pt")
save_file(torch.load(f"{sys.argv[2]}.pt", weights_only=True)["model"], sys.argv[2], {"format": "pt"})
"""
CASES = {
    "bin": "2.2 GB in 132 tensors",
    "one": "one tensor of 2 GB",
    "many": "100,000 tensors, 83 MB",
    "dcp": "2.2 GB from four ranks",
    "chunks": "100,000 chunks from four ranks",
}


def source_of(work: Path, case: str) -> Path:
    """What is opened, made where it is not there."""
    path = work / case if case in ("dcp", "chunks") else work / case / "pytorch_model.bin"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        script = work / "ranks.py"  # its ranks read it again
        script.write_text(RANKS)
        code = [str(script)] if case in ("dcp", "chunks") else ["-c", MAKE]
        subprocess.run([sys.executable, *code, case, str(path)], check=True)
    return path


def read_so_far() -> int:
    """Bytes that this process and all that it waited for have read, from files, pipes and copies in the kernel."""
    rows = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(rows["rchar"])


def compare(work: Path, case: str, runs: int) -> None:
    """Print a table."""
    source, out = source_of(work, case), work / "out"
    size = sum(path.stat().st_size for path in (source.rglob("*") if source.is_dir() else [source]))
    theirs = ("dcp_to_torch_save, torch.load, save_file", JOIN) if source.is_dir() else ("torch.load, save_file", LOAD)
    ways = {
        "surgery": [*SURGERY, "reshard", str(source), "-o", str(out), "--max-shard-size", "9GB", "--quiet"],
        "surgery inspect": [*SURGERY, "inspect", str(source)],
        theirs[0]: [sys.executable, "-c", theirs[1], str(source), f"{out}.st"],
        "cp": ["cp", "-r", str(source), f"{out}.st"],
    }
    found: dict[str, list[tuple[float, float, int, int]]] = {way: [] for way in ways}
    for _ in range(runs):
        for way, command in ways.items():
            for left in (out, *work.glob("out.st*")):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
            before = read_so_far()
            run = measured(command)
            found[way].append((run.seconds, run.cpu, run.peak, read_so_far() - before))
    base = statistics.median(seconds for seconds, _, _, _ in found["cp"])
    for way, made in found.items():
        seconds, cpu = statistics.median(s for s, _, _, _ in made), statistics.median(c for _, c, _, _ in made)
        peak, read = max(p for _, _, p, _ in made), min(r for _, _, _, r in made)
        row = f"{seconds:.2f} s | {seconds / base:.1f} | {cpu:.2f} s | {peak / 1e6:.0f} MB | {read / size:.2f}"
        print(f"| {CASES[case]} | {way} | {row} |", flush=True)


def main() -> None:
    """Print a table."""
    work, runs = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    work.mkdir(parents=True, exist_ok=True)
    print(
        "| what | way | median | against cp | CPU | peak memory | read, of its bytes |\n|---|---|---|---|---|---|---|"
    )
    for case in sys.argv[3:] or CASES:
        compare(work, case, runs)


if __name__ == "__main__":
    main()
