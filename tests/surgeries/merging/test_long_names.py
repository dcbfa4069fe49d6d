"""Names of tensors that are no modules': merged where the work for them is bounded, else refused at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade import write_adapter, write_tensors

import surgery
from surgery.errors import SurgeryError
from surgery.names import PARTS


def merged(folder: Path, module: str) -> surgery.Plan:
    """The plan of a merge into a module that is called so."""
    (folder / "base").mkdir()
    write_tensors(folder / "base" / "model.safetensors", {f"{module}.weight": ("F32", (4, 4))})
    adapter = write_adapter(folder / "adapter", {module: (4, 4)})
    base = surgery.open_checkpoint(folder / "base")
    return surgery.plan(surgery.merge(base, surgery.open_adapter(adapter)))


def test_forty_thousand_characters(tmp_path: Path) -> None:
    assert [shard.name for shard in merged(tmp_path, "a" * 40_000).shards] == ["model.safetensors"]


def test_as_many_parts_as_may_be(tmp_path: Path) -> None:
    assert merged(tmp_path, "a." * 300 + "x").shards


@pytest.mark.parametrize("part", ["a.", "1.", "lora_A."])
def test_fifty_thousand_parts(tmp_path: Path, part: str) -> None:
    with pytest.raises(SurgeryError, match=rf"parts, and {PARTS + 1} are the most that is merged") as caught:
        merged(tmp_path, part * 50_000 + "x")
    assert len(caught.value.where[0]) < 400 and caught.value.help
