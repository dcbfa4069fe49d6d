"""How large the undo record is, and that it restores: one table over dtypes and over how strong the adapter is.

    python benchmarks/undo.py WORKDIR [ROWS]

A base of four matrices of ROWS x 4096 (4096 if not given) of normal weights, LoRA of rank 16 on each, scaled so that
deltas / weights (standard deviations) is what the first column says. The record is given as a share of the merged
tensors' bytes, without the adapter that it keeps; the exact restoration is checked by hash.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import surgery

RATIOS, RANK, COLUMNS = (0.005, 0.025, 0.1, 0.5), 16, 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def base(folder: Path, rows: int, dtype: torch.dtype) -> None:
    """A checkpoint of normal weights."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(
        {f"layers.{i}.weight": (torch.randn(rows, COLUMNS) * 0.02).to(dtype) for i in range(4)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text("{}")


def adapter(folder: Path, rows: int, ratio: float) -> None:
    """LoRA whose deltas have `ratio` times the weights' standard deviation."""
    folder.mkdir(parents=True)
    torch.manual_seed(1)
    size = (0.02 * ratio / RANK**0.5) ** 0.5
    tensors = {}
    for i in range(4):
        tensors[f"base_model.model.layers.{i}.lora_A.weight"] = torch.randn(RANK, COLUMNS) * size
        tensors[f"base_model.model.layers.{i}.lora_B.weight"] = torch.randn(rows, RANK) * size
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))


def restored(work: Path) -> tuple[int, int, int]:
    """Bytes of the record, of the adapter that it keeps, and of the merged weights, where `work` holds a base and an
    adapter. Raises where the base does not come back.
    """
    opened = surgery.open_checkpoint(work / "base")
    made = surgery.merge(opened, surgery.open_adapter(work / "adapter"))
    surgery.write(surgery.reversible(made, opened), work / "merged")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(work / "merged")), work / "out")
    hashes = [hashlib.sha256((work / name / "model.safetensors").read_bytes()).digest() for name in ("base", "out")]
    if hashes[0] != hashes[1]:
        raise RuntimeError("not restored")
    record = sum(file.stat().st_size for file in (work / "merged/.surgery/undo").rglob("*") if file.is_file())
    kept = (work / "adapter/adapter_model.safetensors").stat().st_size
    return record, kept, sum(tensor.nbytes for tensor in opened.tensors.values())


def share(work: Path, rows: int, dtype: torch.dtype, ratio: float) -> float:
    """Bytes of corrections per byte of merged weights. Raises where the base does not come back."""
    shutil.rmtree(work, ignore_errors=True)
    base(work / "base", rows, dtype)
    adapter(work / "adapter", rows, ratio)
    record, kept, whole = restored(work)
    shutil.rmtree(work)
    return (record - kept) / whole


def main() -> None:
    """Print the table."""
    work, rows = Path(sys.argv[1]) / "undo", int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    print("| delta / weight |" + "".join(f" {str(dtype).removeprefix('torch.')} |" for dtype in DTYPES))
    print("| --- |" + " --- |" * len(DTYPES))
    for ratio in RATIOS:
        print(f"| {ratio} |" + "".join(f" {share(work, rows, dtype, ratio):.2%} |" for dtype in DTYPES), flush=True)


if __name__ == "__main__":
    main()
