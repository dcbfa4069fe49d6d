"""Laws of paths inside a folder: what passes is inside, whatever the system that reads it; what does not is told
why.
"""

from __future__ import annotations

import os
import posixpath

import pytest
from hostile import FAULTS
from hypothesis import given
from hypothesis import strategies as st

from surgery.files.paths import fault_of, faults_in, folded, within


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
