"""A folder with weights in several formats: which are taken is said, and none that is stale is taken in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

import surgery
from surgery.errors import NotACheckpoint, NotSupported

A = {"a.weight": torch.ones(2, 3), "b.weight": torch.zeros(4)}


def opened(folder: Path) -> tuple[set[str], str]:
    made = surgery.open_checkpoint(folder)
    return set(made.tensors), "\n".join(made.notes)


def test_safetensors_come_first_and_a_copy_needs_no_word(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    torch.save(A, tmp_path / "pytorch_model.bin")
    names, notes = opened(tmp_path)
    assert names == set(A) and "left out" in notes and "pytorch_model.bin" in notes and "no copy" not in notes


def test_what_is_no_copy_is_told_by_name(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    torch.save({"a.weight": torch.ones(3, 3), "c.weight": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    names, notes = opened(tmp_path)
    assert names == set(A)
    assert (
        "no copy (saved by torch): there alone c.weight; in safetensors alone b.weight; of another shape a.weight"
        in notes
    )


def test_a_tie_is_no_difference(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    torch.save({**A, "tied.weight": A["a.weight"]}, tmp_path / "pytorch_model.bin")
    assert "no copy" not in opened(tmp_path)[1]


def test_a_broken_file_beside_is_no_reason_to_fail(tmp_path: Path) -> None:
    save_file(A, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK\x03\x04")
    assert opened(tmp_path)[0] == set(A)


def test_a_distributed_checkpoint_beside_safetensors_is_left_out(tmp_path: Path) -> None:
    dcp.save({"old.weight": torch.ones(2)}, checkpoint_id=tmp_path / "in", no_dist=True)
    save_file(A, tmp_path / "in/model.safetensors")
    names, notes = opened(tmp_path / "in")
    assert names == set(A) and "there alone old.weight" in notes
    surgery.write(surgery.open_checkpoint(tmp_path / "in"), tmp_path / "out")
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"model.safetensors", ".surgery"} and ".distcp" in notes


def test_of_two_other_formats_the_one_taken_is_said(tmp_path: Path) -> None:
    dcp.save({"new.weight": torch.ones(2)}, checkpoint_id=tmp_path, no_dist=True)
    torch.save(A, tmp_path / "pytorch_model.bin")
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    names, notes = opened(tmp_path)
    assert names == {"new.weight"} and "a distributed checkpoint of torch's" in notes
    assert "pytorch_model.bin" in notes and "q.gguf" in notes


def test_parts_of_every_tensor_are_not_called_stale(tmp_path: Path) -> None:
    """As servers save them, a file for each device: whoever removed one would lose a part of the model."""
    for rank in range(2):
        save_file(A, tmp_path / f"model-rank-{rank}-part-0.safetensors")
    with pytest.raises(NotSupported, match="or a part of each") as caught:
        surgery.open_checkpoint(tmp_path)
    assert "remove none" in str(caught.value) and "stale" not in str(caught.value)


def test_what_is_not_read_is_named_with_its_tool(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(b"x")
    (tmp_path / "tf_model.h5").write_bytes(b"x")
    with pytest.raises(NotACheckpoint, match=r"flax_model.msgpack \(Flax\), tf_model.h5 \(Keras\)"):
        surgery.open_checkpoint(tmp_path)


def test_a_training_that_keeps_weights_in_a_folder_of_their_own(tmp_path: Path) -> None:
    """As FSDP's users find them: the optimizer's folder is not offered."""
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        dcp.save(A, checkpoint_id=tmp_path / name, no_dist=True)
    with pytest.raises(
        NotACheckpoint, match=r"in subfolders(?s:.*)pass one of them: \S*pytorch_model_fsdp_0$"
    ) as caught:
        surgery.open_checkpoint(tmp_path)
    assert "optimizer_0" not in str(caught.value)


def test_a_quantised_file_does_not_come_before_the_weights_that_it_was_made_of(tmp_path: Path) -> None:
    torch.save(A, tmp_path / "pytorch_model.bin")
    (tmp_path / "q4.gguf").write_bytes(b"GGUF and nothing that could be read")
    names, notes = opened(tmp_path)
    assert names == set(A) and "q4.gguf" in notes
