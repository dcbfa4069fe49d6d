"""How exact merged weights are: the share that equals the exact sum, correctly rounded, over sizes of the delta and
ranks.

    python benchmarks/exactness.py [--size 2048] [--time 4096]

W is random normal with deviation 0.02, A and B are float32, and delta/weight is the ratio of the deviations of s·B·A
and W. The exact result is W + s·B·A in float64, rounded once to nearest, ties to even; weights of which float64
cannot tell are counted. Beside our own arithmetic, float32, what float64 accumulation gives and costs: with torch's
conversion, which rounds to float32 on its way to bfloat16 and float16, so that it is not 100 %.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file

import surgery
from surgery.evaluation import evaluate, sums
from surgery.lazy.dtypes import BF16, F16

RATIOS, RANKS = (0.005, 0.025, 0.1, 0.5), (4, 16, 64, 256)
KINDS = {torch.bfloat16: BF16, torch.float16: F16}


def made(folder: Path, dtype: torch.dtype, size: int, rank: int, ratio: float) -> surgery.Checkpoint:
    """A base of one square weight with an adapter merged."""
    torch.manual_seed(rank)
    weight = (0.02 * torch.randn(size, size)).to(dtype)
    a, b = torch.randn(rank, size) / rank**0.5, torch.randn(size, rank)
    scale = ratio * (weight.double().std() / (b.double() @ a.double()).std()).item()
    for name in ("base", "adapter"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_file({"x.weight": weight}, folder / "base" / "model.safetensors", {"format": "pt"})
    factors = {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}
    save_file(factors, folder / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank * scale}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    return surgery.merge(surgery.open_checkpoint(folder / "base"), surgery.open_adapter(folder / "adapter"))


@contextmanager
def in_float64(dtype: torch.dtype) -> Iterator[None]:
    """Our own evaluator, accumulating in float64: it does where a tensor is of what it takes for F64."""
    with mock.patch.object(sums, "F64", KINDS[dtype]):
        yield


def rounded(exact: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """Rounded once to nearest, ties to even, from any wider type."""
    if dtype == torch.float16:
        return torch.from_numpy(exact.astype(np.float16))
    bits = torch.from_numpy(exact.astype(np.float64)).view(torch.int64)
    kept = 1 << 45  # bfloat16 keeps 7 of float64's 52 bits of the fraction; the weights are in its normal range
    return (
        ((bits + (kept // 2 - 1) + ((bits >> 45) & 1)) & -kept).view(torch.float64).to(torch.float32).to(torch.bfloat16)
    )


def reference(merged: surgery.Checkpoint, folder: Path, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """The exact result, correctly rounded; and of how many weights float64 cannot tell, since they are too near to a
    tie.
    """
    adapter, base = surgery.open_adapter(folder / "adapter"), surgery.open_checkpoint(folder / "base")
    scale = np.float64(adapter.config["lora_alpha"] / adapter.config["r"])
    b, a = (evaluate.load(adapter.lora["x"][f"lora_{part}.weight"]).double().numpy() for part in "BA")
    weight = base.load("x.weight").double().numpy()
    delta = scale * (b @ a)
    exact = weight + delta
    slack = 2.0**-44 * np.maximum(np.abs(exact), np.abs(b) @ np.abs(a) * scale)
    return rounded(exact, dtype), int((rounded(exact - slack, dtype) != rounded(exact + slack, dtype)).sum())


def share(value: torch.Tensor, right: torch.Tensor) -> str:
    return f"{100 * (value == right).double().mean().item():.5f} %"


def seconds(merged: surgery.Checkpoint, runs: int = 5) -> float:
    """The least CPU time of a merge of the weight, its reading included, in one thread."""
    found = []
    for _ in range(runs):
        begun = time.process_time()
        merged.load("x.weight")
        found.append(time.process_time() - begun)
    return min(found)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--time", type=int, default=4096)
    told = parser.parse_args()
    unsure = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"| delta/weight | r | bfloat16 | in float64 | float16 | in float64 |\n|{'---|' * 6}")
        for ratio in RATIOS:
            for rank in RANKS:
                row = []
                for dtype in KINDS:
                    merged = made(folder, dtype, told.size, rank, ratio)
                    right, near = reference(merged, folder, dtype)
                    unsure += near
                    row.append(share(merged.load("x.weight"), right))
                    with in_float64(dtype):
                        row.append(share(merged.load("x.weight"), right))
                print(f"| {ratio} | {rank} | {' | '.join(row)} |", flush=True)
        print(
            f"\n{unsure} of {len(RATIOS) * len(RANKS) * 2 * told.size**2} weights were too near to a tie for float64\n"
        )
        print(f"| {told.time} × {told.time} | float32 | float64 | ratio |\n|---|---|---|---|")
        for dtype in KINDS:
            for rank in (16, 256):
                merged = made(folder, dtype, told.time, rank, 0.025)
                single = seconds(merged)
                with in_float64(dtype):
                    double = seconds(merged)
                print(
                    f"| {dtype}, r={rank} | {1e3 * single:.0f} ms | {1e3 * double:.0f} ms | {double / single:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
