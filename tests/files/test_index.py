"""Laws of the index: written as transformers writes it, and never pointing outside its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surgery.errors import FormatError
from surgery.files.index import Index, encode_index, parse_index

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
shards = st.sampled_from(
    ["model.safetensors", "model-00001-of-00002.safetensors", "é", "x/model.safetensors", "...", "a b"]
)
values = st.none() | st.booleans() | st.integers() | text


@settings(deadline=None)
@given(st.dictionaries(text, values, max_size=3), st.dictionaries(text, shards, max_size=5))
def test_parse_inverts_encode(metadata: dict[str, Any], weight_map: dict[str, str]) -> None:
    raw = encode_index(metadata, weight_map)
    assert parse_index(raw, "index") == Index(metadata, weight_map)
    assert encode_index(dict(reversed(metadata.items())), dict(reversed(weight_map.items()))) == raw


@settings(deadline=None)
@given(st.dictionaries(text, values, max_size=3), st.dictionaries(text, shards, max_size=5))
def test_bytes_are_those_of_json(metadata: dict[str, Any], weight_map: dict[str, str]) -> None:
    content = {"metadata": metadata, "weight_map": weight_map}
    assert encode_index(metadata, weight_map) == (json.dumps(content, indent=2, sort_keys=True) + "\n").encode()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_bytes_are_those_of_transformers(saved: Callable[..., Path], family: str) -> None:
    raw = (saved(family, shard="20KB") / "model.safetensors.index.json").read_bytes()
    index = parse_index(raw, "index")
    assert len(set(index.weight_map.values())) > 1 and index.metadata["total_size"] > 0
    assert encode_index(index.metadata, index.weight_map) == raw


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("./a.safetensors", "a.safetensors"),
        ("x//a.safetensors", "x/a.safetensors"),
        ("x/./a.safetensors", "x/a.safetensors"),
    ],
)
def test_shards_are_plain_paths(written: str, read: str) -> None:
    assert parse_index(encode_index({}, {"w": written}), "index").weight_map == {"w": read}


@pytest.mark.parametrize("metadata", [{}, {"metadata": None}, {"metadata": {}}])
def test_metadata_may_be_missing(metadata: dict[str, Any]) -> None:
    assert parse_index(json.dumps({**metadata, "weight_map": {"w": "a"}}).encode(), "index") == Index({}, {"w": "a"})


@pytest.mark.parametrize(
    "shard", ["/a.safetensors", "../a.safetensors", "x/../../a.safetensors", "x\\a.safetensors", "C:a.safetensors"]
)
def test_paths_outside_are_refused(shard: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_index(encode_index({}, {"v": "b.safetensors", "w": shard}), "index")
    assert caught.value.what == f"the index points outside the checkpoint: {shard}"
    assert caught.value.where == ("index: w",)
    assert caught.value.help == "a shard is named relative to the index, inside its folder"


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b'{"weight_map": {"a": 1}}', "`weight_map` must map tensor names to shard files"),
        (b'{"weight_map": {"a": ""}}', "`weight_map` must map tensor names to shard files"),
        (b'{"weight_map": {"a": null}}', "`weight_map` must map tensor names to shard files"),
        (b'{"weight_map": ["a"]}', "`weight_map` must map tensor names to shard files"),
        (b"{}", "`weight_map` must map tensor names to shard files"),
        (b'{"metadata": [], "weight_map": {}}', "`metadata` must be an object"),
        (b'{"metadata": "x", "weight_map": {}}', "`metadata` must be an object"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "the key 'a' comes twice"),
        (b'{"weight_map": {}, "weight_map": {}}', "the key 'weight_map' comes twice"),
        (b'{"metadata": {"total_size": NaN}, "weight_map": {}}', "NaN is not JSON"),
        (b'{"weight_map": {"\\udc00": "x"}}', "half of a surrogate pair is not text"),
        (b"[]", "not a JSON object"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer is here in the place of the file"),
    ],
)
def test_broken_indices(raw: bytes, what: str) -> None:
    with pytest.raises(FormatError) as caught:
        parse_index(raw, "folder/index")
    assert (caught.value.what, caught.value.where) == (what, ("folder/index",))
