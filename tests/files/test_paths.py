"""Laws of paths inside a folder: what passes is inside, whatever the system that reads it; what does not is told
why.
"""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hostile.names import FAULTS
from hypothesis import given
from hypothesis import strategies as st

import surgery
from surgery.files.paths import fault_of, faults_in, folded, within, without_git


@pytest.mark.parametrize(("path", "fault"), FAULTS.items())
def test_what_is_wrong_is_said(path: str, fault: str) -> None:
    assert fault_of(path) == fault
    assert faults_in([path, "a"]) == [f"{path}: {fault}"]


@pytest.mark.parametrize(
    "path", ["a", "a/b.c", ".hidden", "...", "..a", "a..", "notes 12:30.txt", "é ü/日本", "~", "-rf", "x" * 255]
)
def test_what_is_right_is_let(path: str) -> None:
    assert fault_of(path) == ""


@pytest.mark.parametrize("path", [None, 3, ["a"], b"a"])
def test_what_is_no_text_is_no_path(path: object) -> None:
    assert fault_of(path) == "not a text"


@given(
    st.lists(st.sampled_from(["..", ".", "", "a", "b:", "C:", "\\", "~", "\0", "/"]), max_size=6).map("/".join)
    | st.text(max_size=20)
)
def test_what_passes_is_inside(path: str) -> None:
    """It is the only spelling of a file that lies in the folder."""
    if not fault_of(path):
        full = os.path.join("/folder", path)
        assert posixpath.normpath(full) == full
        assert full.startswith("/folder/")
        assert within(path) == [os.path.dirname(path)[: len(p)] for p in within(path)]


def test_folders_of_a_path() -> None:
    assert within("a/b/c") == ["a", "a/b"]
    assert within("a") == []


def test_names_that_a_disk_without_case_takes_for_one() -> None:
    assert folded("Straße/É") == folded("STRASSE/e\u0301")
    assert folded("a") != folded("b")


def test_git_is_left_out_at_any_depth() -> None:
    paths = [
        "a",
        "x/.git/config",
        "x/.git/hooks/post-checkout",
        "x/y/.GIT/c",
        "x/y/b",
        ".gitattributes",
        "z/.git",
        "git",
    ]
    assert without_git(paths) == (["a", "x/y/b", ".gitattributes", "git"], ["x/.git/", "x/y/.GIT/", "z/.git"])


@pytest.mark.parametrize("path", ["sub/.git/hooks/post-checkout", "sub/deep/.Git/config", "sub/.git", ".git"])
def test_a_write_carries_nothing_of_git(path: str, saved: Callable[..., Path], tmp_path: Path) -> None:
    """What lies there would be run or believed where the output is; a note names it."""
    base = Path(shutil.copytree(saved("llama"), tmp_path / "base"))
    (base / path).parent.mkdir(parents=True, exist_ok=True)
    (base / path).write_text("#!/bin/sh\n")
    (base / "sub").mkdir(exist_ok=True)
    (base / "sub" / "readme.txt").write_text("x")
    report = surgery.write(surgery.open_checkpoint(base), tmp_path / "out")
    written = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")}
    assert not any(part.casefold() == ".git" for name in written for part in name.split("/"))
    assert "sub/readme.txt" in written
    (note,) = [note for note in report.notes if note.startswith("left out, since git would run or believe")]
    assert path[: path.casefold().index(".git") + 4] in note


@pytest.mark.parametrize("path", ["sub/.git/config", "a/b/.GIT/hooks/x", ".git/config"])
def test_a_file_that_a_surgery_puts_into_a_folder_of_git_is_refused(
    path: str, saved: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = surgery.open_checkpoint(saved("llama"))
    with pytest.raises(surgery.PlanError, match="a folder that is not theirs"):
        surgery.write(replace(checkpoint, files={**checkpoint.files, path: b""}), tmp_path / "out")
    assert not list(tmp_path.iterdir())
