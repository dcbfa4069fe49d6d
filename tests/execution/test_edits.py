"""Laws of edits: what a user changed in an output is not replaced unless that is said, and `verify` names it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from conftest import hashes
from handmade import write_phi3
from typer.testing import CliRunner

import surgery
from surgery.errors import DestinationError
from surgery.files.manifest import MANIFEST, read_manifest
from surgery_cli.app import app

INDEX = "model.safetensors.index.json"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = write_phi3(tmp_path / "base", layers=2, hidden=32)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "README.md").write_text("what it is")
    return folder


@pytest.fixture
def dest(source: Path, tmp_path: Path) -> Path:
    surgery.write(surgery.open_checkpoint(source), tmp_path / "out", "20KB")
    return tmp_path / "out"


def same_size(path: Path) -> None:
    """One character is another, the size and the time of change are as they were."""
    status, raw = path.stat(), bytearray(path.read_bytes())
    raw[-4] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def to_a_link(path: Path) -> None:
    other = path.parent.parent / "mine"
    other.write_text("mine")
    path.unlink()
    path.symlink_to(other)


EDITS: list[tuple[str, Callable[[Path], None]]] = [
    ("config.json", same_size),
    ("config.json", grown),
    ("README.md", same_size),
    ("README.md", os.unlink),
    ("tokenizer.json", same_size),
    ("tokenizer.json", to_a_link),
    (INDEX, same_size),
    ("model-00001-of-00002.safetensors", grown),
    ("model-00001-of-00002.safetensors", os.unlink),
]


@pytest.mark.parametrize(("name", "edit"), EDITS, ids=[f"{name}-{edit.__name__}" for name, edit in EDITS])
def test_an_edit_is_replaced_only_where_that_is_said(
    source: Path, dest: Path, name: str, edit: Callable[[Path], None]
) -> None:
    shard = next(iter(sorted(p.name for p in dest.glob("*.safetensors"))))
    name = shard if name.endswith(".safetensors") else name
    edit(dest / name)
    before = hashes(dest, without=())
    write = partial(surgery.write, surgery.open_checkpoint(source), dest, "20KB", overwrite=True)
    with pytest.raises(DestinationError, match="the destination was edited since surgery wrote it: 1 file") as caught:
        write()
    assert caught.value.where[0] == str(dest) and [w.split(":")[0] for w in caught.value.where[1:]] == [name]
    assert "--overwrite --discard-edits, in Python overwrite=True, discard_edits=True" in str(caught.value.help)
    assert hashes(dest, without=()) == before
    report = write(discard_edits=True)
    assert any(note.startswith(f"replaced, though edited since surgery wrote it: {name}: ") for note in report.notes)
    assert surgery.verify(dest, check_class=False).checks[1].ok is True


def test_what_was_not_edited_is_replaced_at_once(source: Path, dest: Path) -> None:
    os.utime(dest / "config.json")  # touched, and as it was
    notes = surgery.write(surgery.open_checkpoint(source), dest, overwrite=True).notes
    assert not any("edited" in note for note in notes)


def test_an_edit_during_the_run_is_kept(source: Path, dest: Path) -> None:
    """Hours may lie between the first look and the rename."""

    def edit(step: object) -> None:
        if getattr(step, "kind", "") == "staged":
            same_size(dest / "config.json")

    with pytest.raises(DestinationError, match="was edited since"):
        surgery.write(surgery.open_checkpoint(source), dest, overwrite=True, on_step=edit)
    assert (dest / "config.json").read_bytes() != (source / "config.json").read_bytes()


def test_a_manifest_of_before_tells_sizes_alone(source: Path, dest: Path) -> None:
    content = json.loads((dest / MANIFEST).read_text())
    del content["digests"]
    (dest / MANIFEST).write_text(json.dumps(content))
    same_size(dest / "README.md")
    surgery.write(surgery.open_checkpoint(source), dest, overwrite=True)
    (dest / "README.md").write_text("longer than it was before")
    with pytest.raises(DestinationError, match="was edited since"):
        surgery.write(surgery.open_checkpoint(source), dest, overwrite=True)


def test_the_command_line(source: Path, dest: Path) -> None:
    same_size(dest / "config.json")
    command = ["reshard", str(source), "-o", str(dest), "--max-shard-size", "5GB", "--overwrite"]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 1 and "config.json: edited" in refused.output
    assert CliRunner().invoke(app, [*command, "--discard-edits"]).exit_code == 0
    assert (dest / "config.json").read_bytes() == (source / "config.json").read_bytes()


def test_verify_names_an_edit_that_left_the_size(dest: Path) -> None:
    same_size(dest / "tokenizer.json")
    check = surgery.verify(dest, check_class=False).checks[1]
    assert check.ok is False and check.where == ("tokenizer.json: edited: its content is another, of the same size",)


def test_reindex_keeps_the_manifest_true(dest: Path) -> None:
    index = json.loads((dest / INDEX).read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], "gone.safetensors")
    (dest / INDEX).write_text(json.dumps(index))
    assert surgery.verify(dest, check_class=False).ok is False
    assert surgery.reindex(dest).changed
    assert surgery.verify(dest, check_class=False).ok
    manifest = read_manifest(str(dest))
    assert manifest and manifest.files[INDEX] == (dest / INDEX).stat().st_size
