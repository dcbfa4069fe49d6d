"""Run as a program: ranks on this machine save one state together with torch's distributed checkpoint.

    write_distributed.py FOLDER RANKS

Writes FOLDER/dcp; FOLDER/spread, the model in pieces in safetensors; FOLDER/ranks, a file of each rank; and what was
saved, whole, as FOLDER/whole.pt.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

PLACED = {
    "rows.weight": ((7, 5), torch.float32, (Shard(0), Replicate())),
    "columns.weight": ((4, 6), torch.bfloat16, (Replicate(), Shard(1))),
    "grid.weight": ((5, 9), torch.float32, (Shard(0), Shard(1))),
    "twice.weight": ((13, 2), torch.float16, (Shard(0), Shard(0))),
    "copied.bias": ((3,), torch.float32, (Replicate(), Replicate())),
    "few.bias": ((2,), torch.float32, (Shard(0), Shard(0))),
    "deep.weight": ((3, 4, 2), torch.float32, (Shard(1), Shard(0))),
}


def save(rank: int, ranks: int, port: int, folder: str) -> None:
    """One rank's part."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (2, ranks // 2))
    torch.manual_seed(0)
    whole = {name: torch.randn(shape).to(dtype) for name, (shape, dtype, _) in PLACED.items()}
    model = {name: distribute_tensor(value, mesh, PLACED[name][2]) for name, value in whole.items()}
    state = {"model": model, "optimizer": {"state": {"rows.weight": model["rows.weight"]}}, "step": 5}
    dcp.save(state, checkpoint_id=f"{folder}/dcp")
    writer = HuggingFaceStorageWriter(f"{folder}/spread", dict.fromkeys(whole, 1), save_distributed=True)
    dcp.save(model, storage_writer=writer)
    Path(folder, "ranks").mkdir(exist_ok=True)
    torch.save(model, f"{folder}/ranks/model_world_size_{ranks}_rank_{rank}.pt")
    torch.save({}, f"{folder}/ranks/extra_state_world_size_{ranks}_rank_{rank}.pt")
    if not rank:
        torch.save(whole, f"{folder}/whole.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        chosen = free.getsockname()[1]
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    mp.spawn(save, (int(sys.argv[2]), chosen, sys.argv[1]), nprocs=int(sys.argv[2]))
