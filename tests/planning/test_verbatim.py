"""What is restored is written under its base's own headers, as long as they tell the truth: what a later surgery
changed is not written under them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import hashes

import surgery

CHANGES: dict[str, Callable[[surgery.Checkpoint], surgery.Checkpoint]] = {
    "drop": lambda base: surgery.drop(base, r"lm_head\..*"),
    "keep": lambda base: surgery.keep(base, r"model\.layers\.1\..*"),
    "rename": lambda base: surgery.rename(base, [(r"^model\.", "backbone.")]),
    "cast": lambda base: surgery.cast(base, "float16"),
    "cast of one": lambda base: surgery.cast(base, "float32", only=r"model\.norm\.weight"),
    "nothing": lambda base: base,
}


@pytest.mark.parametrize("shard", ["40KB", None])
@pytest.mark.parametrize("change", CHANGES)
def test_after_unmerge_it_is_what_the_base_becomes(
    change: str, shard: str | None, saved: Callable[..., Path], tmp_path: Path
) -> None:
    base = surgery.open_checkpoint(saved("llama", shard=shard, dtype=torch.bfloat16))
    surgery.write(surgery.inject(base, rank=2, target_modules=["q_proj"]), tmp_path / "lora")
    merged = surgery.merge(base, surgery.open_adapter(tmp_path / "lora"))
    surgery.write(surgery.reversible(merged, base), tmp_path / "merged")
    restored = surgery.unmerge(surgery.open_checkpoint(tmp_path / "merged"))
    surgery.write(CHANGES[change](restored), tmp_path / "out")
    surgery.write(CHANGES[change](base), tmp_path / "wanted")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "wanted")
