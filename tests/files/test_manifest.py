"""Laws of the manifest: it comes back as it was written, and a broken one is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import surgery
from surgery.errors import FormatError
from surgery.files.manifest import MANIFEST, Manifest, encode_manifest, read_manifest

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | text,
    lambda inner: st.lists(inner) | st.dictionaries(text, inner),
    max_leaves=5,
)
objects = st.dictionaries(text, values, max_size=3)
manifests = st.builds(
    Manifest,
    version=text,
    identity=text,
    history=st.lists(objects, max_size=3).map(tuple),
    inputs=st.lists(objects, max_size=2).map(tuple),
    options=objects,
    files=st.dictionaries(text, st.integers(0, 2**60), max_size=4),
)


def placed(folder: Path, raw: bytes) -> str:
    """The folder, with these bytes as its manifest."""
    (folder / ".surgery").mkdir(exist_ok=True)
    (folder / MANIFEST).write_bytes(raw)
    return str(folder)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifests)
def test_read_inverts_encode(tmp_path: Path, manifest: Manifest) -> None:
    assert read_manifest(placed(tmp_path, encode_manifest(manifest))) == manifest


def test_no_manifest(tmp_path: Path) -> None:
    assert read_manifest(str(tmp_path)) is None
    assert read_manifest(str(tmp_path / "nowhere")) is None


def test_what_was_written_is_what_it_says(saved: Callable[..., Path], tmp_path: Path) -> None:
    source = saved("llama", shard="20KB")
    made = surgery.drop(surgery.open_checkpoint(source), r"lm_head\.weight")
    surgery.write(made, tmp_path / "out", max_shard_size="60KB")
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest is not None
    assert manifest.version == surgery.__version__
    assert manifest.history == made.history and manifest.history[0]["dropped"] == ["lm_head.weight"]
    assert manifest.options == {"max_shard_size": "60KB", "balanced": False, "drop_metadata": []}
    files = {
        p.relative_to(tmp_path / "out").as_posix(): p.stat().st_size
        for p in (tmp_path / "out").rglob("*")
        if p.is_file()
    }
    assert manifest.files == {name: size for name, size in files.items() if name != MANIFEST}
    assert str(source) not in (tmp_path / "out" / MANIFEST).read_text()


def test_history_goes_on(saved: Callable[..., Path], tmp_path: Path) -> None:
    surgery.write(surgery.rename(surgery.open_checkpoint(saved("bert")), [("^bert", "b")]), tmp_path / "one")
    surgery.write(surgery.rename(surgery.open_checkpoint(tmp_path / "one"), [("^b", "bert")]), tmp_path / "two")
    manifest = read_manifest(str(tmp_path / "two"))
    assert manifest and [step["rules"] for step in manifest.history] == [[["^bert", "b"]], [["^b", "bert"]]]


WHOLE = json.loads(encode_manifest(Manifest("1", "x", ({"surgery": "drop"},), ({},), {}, {"a": 1})))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": 2}, "a manifest of format 2 by 'surgery'"),
        ({"tool": "scalpel"}, "a manifest of format 1 by 'scalpel'"),
        ({"history": ["drop"]}, "the manifest is not one that surgery writes: ValueError("),
        ({"history": None}, "the manifest is not one that surgery writes: TypeError("),
        ({"files": []}, "the manifest is not one that surgery writes: AttributeError("),
        ({"files": {"a": "many"}}, "the manifest is not one that surgery writes: ValueError("),
    ],
)
def test_foreign_manifests(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    with pytest.raises(FormatError) as caught:
        read_manifest(placed(tmp_path, json.dumps(WHOLE | change).encode()))
    assert caught.value.what.startswith(what)
    assert caught.value.where == (str(tmp_path / MANIFEST),)


@pytest.mark.parametrize("key", list(WHOLE))
def test_incomplete_manifests(tmp_path: Path, key: str) -> None:
    broken = {k: v for k, v in WHOLE.items() if k != key}
    with pytest.raises(FormatError, match="the manifest is not one that surgery writes: KeyError") as caught:
        read_manifest(placed(tmp_path, json.dumps(broken).encode()))
    assert caught.value.help == "restore it from a copy, or remove it: then nothing says what was done to the folder"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"tool": "surgery", "tool": "surgery"}', b"\xff"])
def test_manifests_that_are_no_json(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        read_manifest(placed(tmp_path, raw))
    assert caught.value.where == (str(tmp_path / MANIFEST),)


def test_a_broken_manifest_keeps_a_folder_from_being_opened(saved: Callable[..., Path], tmp_path: Path) -> None:
    surgery.write(surgery.open_checkpoint(saved("bert")), tmp_path / "out")
    placed(tmp_path / "out", b"{}")
    with pytest.raises(FormatError, match="the manifest is not one that surgery writes: KeyError"):
        surgery.open_checkpoint(tmp_path / "out")


MERGED = {"surgery": "merge", "adapters": [{"digest": "d"}]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"history": [{"surgery": [1]}]}, "step 1 has another `surgery`"),
        ({"history": [MERGED, MERGED | {"adapters": "after"}]}, "step 2 has another `adapters`"),
        ({"history": [MERGED | {"adapters": [[]]}]}, "step 1 has another `adapters`"),
        ({"history": [MERGED | {"adapters": [{"digest": []}]}]}, "step 1 has another `adapters`"),
        ({"history": [MERGED | {"adapters": [{}]}]}, "step 1 has another `adapters`"),
        ({"history": [MERGED | {"map": [["a"]]}]}, "step 1 has another `map`"),
        ({"history": [MERGED | {"only": 5}]}, "step 1 has another `only`"),
        ({"history": [{"surgery": "split", "modules": [{"fused": "a"}]}]}, "step 1 has another `modules`"),
        ({"history": [{"surgery": "fuse", "modules": 5}]}, "step 1 has another `modules`"),
        ({"history": [{"surgery": "cast", "dtype": {}}]}, "step 1 has another `dtype`"),
        ({"history": 5}, "TypeError"),
        ({"inputs": [{"role": []}]}, "input 1 has another `role`"),
        ({"inputs": [{"files": "x"}]}, "input 1 has another `files`"),
        ({"inputs": [{"files": {"a": 1}}]}, "input 1 has another `files`"),
        ({"files": {"a": 1e400}}, "OverflowError"),
    ],
)
def test_what_others_go_by_is_typed(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    raw = json.dumps(WHOLE | change).replace("Infinity", "1e400").encode()
    with pytest.raises(FormatError, match="the manifest is not one that surgery writes: ") as caught:
        read_manifest(placed(tmp_path, raw))
    assert what in caught.value.what


def test_what_nothing_goes_by_may_be_anything(tmp_path: Path) -> None:
    odd = {"history": [{"surgery": "drop", "dropped": 5}, {"adapters": 7}, {"surgery": "unheard", "modules": {}}]}
    found = read_manifest(placed(tmp_path, json.dumps(WHOLE | odd).encode()))
    assert found and list(found.history) == odd["history"]
