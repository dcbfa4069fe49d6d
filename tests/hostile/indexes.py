"""Indices that lie: names that lead out, shards that are not there, what is no index at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .names import FAULTS
from .rows import INDEX, OUTSIDE, SHARD, Content, Row, checkpoint, sparse

ONE = "model-00001-of-00001.safetensors"


def index(weight_map: Any, **more: Any) -> str:
    return json.dumps({"metadata": {}, "weight_map": weight_map, **more})


def of(shard: str) -> str:
    """An index that finds a tensor in that shard."""
    return index({"a": shard})


INDICES: dict[str, tuple[Content, str]] = {
    "nothing": (b"", "cut off"),
    "a list": ("[]", "not a JSON object"),
    "no JSON": ("{]", "not JSON"),
    "cut off": (of("a.safetensors")[:-5], "cut off"),
    "no map": ('{"metadata": {}}', "must map tensor names"),
    "a map that is a list": (index(["a"]), "must map tensor names"),
    "a map of numbers": (index({"a": 1}), "must map tensor names"),
    "a map of lists": (index({"a": ["model.safetensors"]}), "must map tensor names"),
    "a map of nothing": (index({"a": ""}), "must map tensor names"),
    "two maps": ('{"weight_map": {}, "weight_map": {}}', "'weight_map' comes twice"),
    "a tensor twice": ('{"weight_map": {"a": "x", "a": "y"}}', "'a' comes twice"),
    "metadata that is a text": (index({}, metadata="x"), "`metadata` must be an object"),
    "metadata of NaN": ('{"metadata": {"total_size": NaN}, "weight_map": {}}', "NaN is not JSON"),
    "a size of a million digits": (
        '{"metadata": {"total_size": ' + "9" * 1_000_000 + '}, "weight_map": {}}',
        "cannot|digits",
    ),
    "100,000 objects in each other": ('{"metadata":' * 100_000, "nested too deeply"),
    "half of a surrogate pair": ('{"weight_map": {"\\udc00": "x"}}', "half of a surrogate pair"),
    "a pointer of Git LFS": ("version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "shards that are not there": (index({f"t{n}": f"{n}.safetensors" for n in range(1000)}), "lacks|not there|missing"),
    "the shard outside": (of(f"../{OUTSIDE}/{SHARD}"), "points outside the checkpoint"),
    "the shard outside, up and down": (of(f"w/../../{OUTSIDE}/{SHARD}"), "points outside the checkpoint"),
    "the shard is a device": (of("/dev/zero"), "points outside the checkpoint"),
    "the shard is a file of the system": (of("/etc/passwd"), "points outside the checkpoint"),
    "the shard is config.json": (of("config.json"), "not safetensors"),
    "the shard is the folder": (of("."), "no file|points outside"),
    "a tensor that the shard does not have": (index({"a": SHARD}), "index|lacks|not in"),
    "a million tensors in one shard": (
        index({f"t{n}": "a.safetensors" for n in range(100_000)}),
        "not there|missing|lacks",
    ),
    "two sparse gigabytes": (sparse(2_000_000_000, b"{"), "too large to be read whole"),
}


def elsewhere(path: Path) -> None:
    """An index, and its shard behind a folder that is a link."""
    (path.parent / "sub").symlink_to(f"../{OUTSIDE}")
    path.write_text(of(f"sub/{SHARD}"))


def turning(path: Path) -> None:
    """A shard that is a link to itself, by way of another."""
    (path.parent / "a.safetensors").symlink_to("b.safetensors")
    (path.parent / "b.safetensors").symlink_to("a.safetensors")
    path.write_text(of("a.safetensors"))


def rows() -> Iterator[Row]:
    """Each beside a shard without which the index would be alone, or with one that it names."""
    for name, (content, says) in INDICES.items():
        named = "config.json" if name == "the shard is config.json" else INDEX
        yield checkpoint(f"index: {name}", INDEX, content, says, files={SHARD: None}, names=named)
    for path, fault in FAULTS.items():
        if path:
            says = "not there|missing|lacks|points outside|names no file that could be|must map|surrogate"
            yield checkpoint(
                f"index: a shard called {path[:20]!a}, {fault}", INDEX, of(path), says, files={SHARD: None}
            )
    yield checkpoint(
        "index: a shard behind a link", INDEX, elsewhere, "leads out of the folder", files={SHARD: None}, names="sub"
    )
    yield checkpoint(
        "index: a shard that leads to itself",
        INDEX,
        turning,
        "leads nowhere",
        files={SHARD: None},
        names="a.safetensors",
    )
