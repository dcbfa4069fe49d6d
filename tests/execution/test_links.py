"""Hard links: what is untouched becomes a second name of the input, and no run ever writes to an input through one."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import hashes
from forks import beside, dying_at, forked
from typer.testing import CliRunner

import surgery
from surgery.errors import SourceChanged
from surgery.execution.execute import whole_file
from surgery_cli.app import app

Saved = Callable[..., Path]


@pytest.fixture
def base(saved: Saved, tmp_path: Path) -> Path:
    """A checkpoint of many shards that a test may spoil."""
    return Path(shutil.copytree(saved("llama", shard="40KB"), tmp_path / "base"))


def adapted(base: Path) -> surgery.Checkpoint:
    checkpoint = surgery.open_checkpoint(base)
    return surgery.inject_into(checkpoint, surgery.inject(checkpoint, ["q_proj"], rank=2))


def shared(folder: Path, base: Path) -> set[str]:
    """The files of `folder` that are those of `base`, under a second name."""
    return {
        path.name
        for path in folder.iterdir()
        if path.is_file() and (base / path.name).exists() and path.samefile(base / path.name)
    }


def test_untouched_shards_and_files_are_linked(base: Path, tmp_path: Path) -> None:
    copied = surgery.write(adapted(base), tmp_path / "copied")
    linked = surgery.write(adapted(base), tmp_path / "linked", link=True)
    assert hashes(tmp_path / "copied", without=()) == hashes(tmp_path / "linked", without=())
    assert shared(tmp_path / "copied", base) == set() and copied.linked == 0
    names = {path.name for path in base.iterdir()} - {"model.safetensors.index.json"}
    assert shared(tmp_path / "linked", base) == names
    assert linked.linked == sum((base / name).stat().st_size for name in names)
    assert (
        linked.notes[0]
        == f"hard-linked to the inputs: {linked.linked} bytes; whoever writes to one of them writes to both"
    )


def test_touched_shards_are_written(base: Path, tmp_path: Path) -> None:
    """A merge links the shards in which nothing is computed; renamed tensors have another header."""
    checkpoint = surgery.open_checkpoint(base)
    adapter = surgery.inject(checkpoint, r".*layers\.1\.self_attn\.q_proj")
    surgery.write(surgery.merge(checkpoint, adapter), tmp_path / "merged", link=True)
    touched = checkpoint.weight_map["model.layers.1.self_attn.q_proj.weight"]
    assert {path.name for path in base.glob("*.safetensors")} - shared(tmp_path / "merged", base) == {touched}
    surgery.write(surgery.rename(checkpoint, [("^model", "m")]), tmp_path / "renamed", link=True)
    head = checkpoint.weight_map["lm_head.weight"]
    only = {name for name in checkpoint.tensors if checkpoint.weight_map[name] == head} == {"lm_head.weight"}
    assert {n for n in shared(tmp_path / "renamed", base) if n.endswith(".safetensors")} == ({head} if only else set())
    surgery.write(checkpoint, tmp_path / "one", "1GB", link=True)
    assert not {n for n in shared(tmp_path / "one", base) if n.endswith(".safetensors")}


def test_a_file_behind_a_link_is_linked_itself(base: Path, tmp_path: Path) -> None:
    """As in the Hub's cache, where a snapshot holds links."""
    blobs = Path(shutil.copytree(base, tmp_path / "models--org--name" / "blobs"))
    snapshot = blobs.parent / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(path)
    surgery.write(surgery.open_checkpoint(snapshot), tmp_path / "out", link=True)
    assert {p.name for p in blobs.glob("*.safetensors")} <= shared(tmp_path / "out", blobs)
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_no_link_can_be_made_it_is_copied_and_said(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(code, os.strerror(code))

    surgery.write(adapted(base), tmp_path / "want")
    monkeypatch.setattr(os, "link", refuse)
    report = surgery.write(adapted(base), tmp_path / "out", link=True)
    assert hashes(tmp_path / "out", without=()) == hashes(tmp_path / "want", without=())
    assert shared(tmp_path / "out", base) == set() and report.linked == 0
    assert report.notes[0].startswith("copied, since they could not be linked: model-00001-of-")
    assert os.strerror(code) in report.notes[0]


def test_other_errors_are_errors(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(surgery.DestinationError, match=os.strerror(errno.EIO)):
        surgery.write(adapted(base), tmp_path / "out", link=True)


def test_killed_at_any_step_the_inputs_stay_and_a_rerun_is_whole(base: Path, tmp_path: Path) -> None:
    """Whether the rerun links or not: what a dead run linked is never written to, and without links nothing is
    shared.
    """
    before = hashes(base, without=())
    surgery.write(adapted(base), tmp_path / "want", link=True)
    want, steps = hashes(tmp_path / "want", without=()), [0]
    surgery.write(
        adapted(base), tmp_path / "counted", link=True, on_step=lambda step: steps.__setitem__(0, steps[0] + 1)
    )
    assert steps[0] > 8
    for at in range(1, steps[0] + 1):
        dest = tmp_path / f"killed{at}" / "out"
        run = partial(surgery.write, adapted(base), dest, link=True, workers=1, on_step=dying_at(at))
        assert forked(run) == -signal.SIGKILL
        assert hashes(base, without=()) == before
        again = at % 2 == 0
        surgery.write(adapted(base), dest, link=again, overwrite=True)
        assert hashes(dest, without=()) == want and hashes(base, without=()) == before
        assert bool(shared(dest, base)) == again
        assert not beside(dest)


def test_overwriting_what_is_linked_leaves_the_input(base: Path, tmp_path: Path) -> None:
    before = hashes(base, without=())
    surgery.write(surgery.open_checkpoint(base), tmp_path / "out", link=True)
    surgery.write(surgery.drop(surgery.open_checkpoint(base), "lm_head.weight"), tmp_path / "out", overwrite=True)
    assert hashes(base, without=()) == before
    assert not shared(tmp_path / "out", base)


def test_an_input_that_changed_is_not_linked_in_silence(base: Path, tmp_path: Path) -> None:
    checkpoint = surgery.open_checkpoint(base)
    shard = base / checkpoint.weight_map["lm_head.weight"]
    os.utime(shard, ns=(1, 1))
    with pytest.raises(SourceChanged):
        surgery.write(checkpoint, tmp_path / "out", link=True)
    assert not (tmp_path / "out").exists()


def test_whole_file_asks_for_the_header_too(base: Path) -> None:
    checkpoint = surgery.open_checkpoint(base)
    assert all(whole_file(shard) is not None for shard in surgery.plan(checkpoint).shards)
    assert not any(whole_file(shard) for shard in surgery.plan(checkpoint, drop_metadata=["format"]).shards)


def test_the_command_line(base: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["drop", str(base), "-o", str(tmp_path / "out"), "--pattern", "lm_head.weight", "--link"]
    )
    assert done.exit_code == 0 and "hard-linked to the inputs" in done.output
    assert shared(tmp_path / "out", base)
