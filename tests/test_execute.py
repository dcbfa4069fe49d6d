"""Laws of the executor: the bytes depend on the plan alone, each input byte is read once, and every step is told.

Not on the number of workers, the memory, what the kernel can copy, or what broke before.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hashes
from forks import beside, forked
from handmade import write_adapter, write_phi3, write_tensors
from safetensors.torch import load_file, save_file

import surgery
from surgery import Step
from surgery.checkpoint import Checkpoint
from surgery.dtypes import DTYPES
from surgery.errors import LayoutError, SurgeryError
from surgery.execute import COPY_CHUNK
from surgery.formats.safetensors import read_header
from surgery.stage import stages
from surgery.tensor import LowRank, Stored, Tensor, Zeros, add, concat, narrow, permute, reshape

MEMORY, WORKERS = ("20MB", "64MB", "512MB"), (1, 2, 4)


def opened(folder: Path, tensors: Mapping[str, torch.Tensor]) -> Checkpoint:
    """A checkpoint of these tensors, saved at `folder`."""
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return surgery.open_checkpoint(folder)


def extended(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Checkpoint:
    """The checkpoint with more tensors, in its first shard."""
    shard = min(checkpoint.weight_map.values())
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **tensors},
        weight_map={**checkpoint.weight_map, **dict.fromkeys(tensors, shard)},
    )


def whole(folder: Path) -> dict[str, str]:
    return hashes(folder, without=())


def split_gpt2(saved: Callable[..., Path], tmp_path: Path) -> Checkpoint:
    """Copied, gathered (q, k and v are columns of a fused matrix) and computed (some of them are merged)."""
    base = surgery.split_qkv(surgery.open_checkpoint(saved("gpt2", dtype=torch.bfloat16)))
    adapter = write_adapter(tmp_path / "adapter", {f"transformer.h.{i}.attn.{p}": (36, 36) for i in range(2) for p in ("c_attn_q", "q_proj")})
    del adapter
    return base


def moved(tensor: Tensor) -> Tensor:
    """The same shape, other elements: rows and columns change places in a way that no row block of a sum can be cut for."""
    rows, columns = tensor.shape
    return reshape(permute(reshape(tensor, (rows // 3, 3, columns // 2, 2)), (3, 1, 0, 2)), (rows, columns))
