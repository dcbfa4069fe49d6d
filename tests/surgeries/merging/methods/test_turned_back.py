"""Records of what was turned: they hold the blocks that turn it back, and little more."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes
from safetensors.torch import save_file

import surgery

SIZE = 512
KINDS: dict[str, Callable[[], dict[str, torch.Tensor]]] = {
    "OFT": lambda: {"oft_R.weight": noise(SIZE // 16, 120)},
    "BOFT": lambda: {"boft_R": noise(2, SIZE // 8, 8, 8), "boft_s": 1 + noise(SIZE, 1)},
}


def noise(*shape: int) -> torch.Tensor:
    return 0.05 * torch.randn(shape, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_turned_back_needs_few_corrections(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    weight = noise(SIZE, SIZE).to(dtype)
    save_file({"lin.weight": weight}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    (tmp_path / "base" / "config.json").write_text("{}")
    (tmp_path / "adapter").mkdir()
    parts = {f"base_model.model.lin.{name}": part for name, part in KINDS[kind]().items()}
    save_file(parts, tmp_path / "adapter" / "adapter_model.safetensors")
    config = {"peft_type": kind, "target_modules": ["lin"], **({"use_cayley_neumann": False} if kind == "OFT" else {})}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    base = surgery.open_checkpoint(tmp_path / "base")
    made = surgery.merge(base, surgery.open_adapter(tmp_path / "adapter"))
    surgery.write(surgery.reversible(made, base), tmp_path / "out")
    surgery.write(surgery.unmerge(surgery.open_checkpoint(tmp_path / "out")), tmp_path / "back")
    assert hashes(tmp_path / "back") == hashes(tmp_path / "base")
    record = sum(file.stat().st_size for file in tmp_path.rglob("*.undo"))
    assert record < 0.2 * weight.nbytes, f"a record of {record} bytes of a weight of {weight.nbytes}"
