"""A base that an adapter's initialisation changed, known by the digests that the Hub tells: nobody has to say that
this is it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import transformers as tf
from changed_bases import trained

import surgery
from hub.server import Hub
from surgery.errors import NotSupported

Saved = Callable[..., Path]
REFUSED = "changes the base it belongs to"


def put(hub: Hub, name: str, folder: Path) -> str:
    hub.put_folder(name, folder)
    hub.put(name, {".gitattributes": None})
    return f"hf://{name}"


def merged(base: str | Path, adapter: Path, **told: Any) -> surgery.Checkpoint:
    return surgery.merge(surgery.open_checkpoint(base), surgery.open_adapter(adapter), **told)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_base_of_the_same_digests_needs_no_word(init: str, saved: Saved, hub: Hub, tmp_path: Path) -> None:
    """The manifest is the one that surgery writes of what it reads from that base on the Hub."""
    live, adapter = trained(saved, tmp_path, init), tmp_path / "a"
    changed, before = put(hub, "org/changed", tmp_path / "base"), put(hub, "org/before", saved("llama"))
    with pytest.raises(NotSupported, match=REFUSED):
        merged(changed, adapter)
    surgery.write(surgery.open_checkpoint(changed), tmp_path / "new")
    shutil.copytree(tmp_path / "new/.surgery", adapter / ".surgery")
    made = merged(changed, adapter)
    assert not [note for note in made.notes if "was initialised by" in note or "digests" in note]
    assert not any(step.get("base_as_trained") for step in made.history)
    surgery.write(made, tmp_path / "out")
    error = (
        (tiny_models.output(tf.LlamaForCausalLM.from_pretrained(tmp_path / "out").eval(), "llama") - live).abs().max()
    )
    assert error <= 1e-5 * live.abs().max()
    assert surgery.verify(tmp_path / "out", base=changed, adapter=adapter).ok
    copy = put(hub, "other/copy", tmp_path / "base")  # the same bytes in another repository
    assert merged(copy, adapter).tensors.keys() == made.tensors.keys()
    for base in (before, tmp_path / "base", saved("llama")):  # other weights, or such as nobody hashed
        with pytest.raises(NotSupported, match=REFUSED):
            merged(base, adapter)
    said = merged(before, adapter, base_as_trained=True)  # taken as said
    assert any("was initialised by" in note for note in said.notes)


@pytest.mark.parametrize("change", ["digest", "name", "none", "role", "kind"])
def test_a_manifest_that_does_not_say_so_does_not_count(change: str, saved: Saved, hub: Hub, tmp_path: Path) -> None:
    trained(saved, tmp_path, "pissa")
    base, adapter = put(hub, "org/changed", tmp_path / "base"), tmp_path / "a"
    surgery.write(surgery.open_checkpoint(base), tmp_path / "new")
    manifest = json.loads((tmp_path / "new/.surgery/manifest.json").read_text())
    (entry,) = (one for one in manifest["inputs"] if one["role"] == "base")
    files = entry["files"]
    match change:
        case "digest":
            files["model.safetensors"]["sha256"] = "0" * 64
        case "name":
            files["other.safetensors"] = files.pop("model.safetensors")
        case "none":
            del files["model.safetensors"]
        case "role":
            entry["role"] = "adapter"
        case "kind":
            entry["digest"] = "sha256 of the header"
    (adapter / ".surgery").mkdir()
    (adapter / ".surgery/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(NotSupported, match=REFUSED):
        merged(base, adapter)
