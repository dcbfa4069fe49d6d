"""The model card: README.md, whose metadata say what a model is made of, and whose text what was done to make it.

A card that is there keeps every byte: it only gains the metadata that it lacks. All that is said comes from the
config, the adapter's config and the manifest; nothing is made up, so what they do not tell is left out.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import FormatError
from ..files.card import BLOCK, metadata_of
from ..files.folder import Folder
from ..files.manifest import Manifest, read_manifest
from ..files.peft import CONFIG as ADAPTER_CONFIG
from ..files.strict import MEND, parse_object

_ID = re.compile(r"(?:hf://)?(?P<id>[\w.-]+/[\w.-]+?)(?:@.+)?")


@dataclass(frozen=True, slots=True)
class Origins:
    """What a folder says about where its content is from; `bases` are repositories on the Hub.

    `named` are the same, and the repository that the content goes to where it is named: it is no base of its own.
    """

    name: str
    bases: tuple[str, ...]
    metadata: Mapping[str, Any]
    manifest: Manifest | None
    named: tuple[str, ...] = ()


def origins(folder: Folder, name: str, target: str = "") -> Origins:
    """What is known of the model or adapter in `folder`, which is to be called `name` in the repository `target`."""
    manifest = read_manifest(folder)
    adapter = _object(folder, ADAPTER_CONFIG)
    config = _object(folder, "config.json")
    named = tuple(dict.fromkeys(found for text in _named(manifest, adapter, config) if (found := repo_named(text))))
    bases = tuple(
        repo for repo in named if repo.casefold() != target.casefold()
    )  # to the Hub, names differ by more than case
    steps = [str(step.get("surgery")) for step in manifest.history] if manifest else []
    relation = "adapter" if adapter and not config else "merge" if "merge" in steps else "finetune"
    kind = [str(adapter["peft_type"]).lower()] if adapter.get("peft_type") and not config else []
    metadata = {
        "base_model": bases[0] if len(bases) == 1 else list(bases),
        "base_model_relation": relation if bases else "",
        "library_name": _library(config, adapter),
        "tags": list(dict.fromkeys([*kind, "surgery", *(["merge"] if "merge" in steps else [])])),
    }
    return Origins(name, bases, {key: value for key, value in metadata.items() if value}, manifest, named)


def repo_named(text: str) -> str | None:
    """The repository that `text` names, where it can be one on the Hub and is no path here."""
    found = _ID.fullmatch(text)
    return found["id"] if found and not os.path.exists(text) else None


def _object(folder: Folder, name: str) -> dict[str, Any]:
    if not folder.has(name):
        return {}
    return parse_object(folder.read(name), lambda what: FormatError(what, where=[folder.at(name)], help=MEND))


def _named(manifest: Manifest | None, adapter: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """What the files call the model that this one is made of, the surest first."""
    inputs = [str(entry.get("name", "")) for entry in manifest.inputs] if manifest else []
    if any(repo_named(name) for name in inputs):
        return inputs
    return [
        text for text in (adapter.get("base_model_name_or_path"), config.get("_name_or_path")) if isinstance(text, str)
    ][:1]


def _library(config: Mapping[str, Any], adapter: Mapping[str, Any]) -> str:
    if config:
        return "transformers" if "model_type" in config else "diffusers" if "_class_name" in config else ""
    return "peft" if adapter else ""


def completed(card: str, metadata: Mapping[str, Any]) -> str:
    """The card with those of `metadata` that it lacks; otherwise as it was, to the byte."""
    here = metadata_of(card)
    missing = {key: value for key, value in metadata.items() if key not in here}
    if not missing:
        return card
    found = BLOCK.match(card)
    if not found:
        return f"---\n{_yaml(missing)}---\n\n{card}"
    return card[: found.start("end")] + _yaml(missing) + card[found.start("end") :]


def written(origins: Origins, metadata: Mapping[str, Any]) -> str:
    """A new card."""
    base = ", ".join(f"[{b}](https://huggingface.co/{b})" for b in origins.bases)
    kind = "An adapter for" if metadata.get("base_model_relation") == "adapter" else "Made of"
    parts = [f"# {origins.name}", *([f"{kind} {base}."] if base else [])]
    if origins.manifest:
        parts += [
            f"## How it was made\n\nBy `surgery` {origins.manifest.version}, on the files, without loading the model:"
        ]
        parts += ["\n".join(_steps(origins.manifest))]
        if any(entry.get("files") for entry in origins.manifest.inputs):
            parts += [
                f"From these files; a digest is the {_digests(origins.manifest)}:",
                "\n".join(_inputs(origins.manifest)),
            ]
    text = f"---\n{_yaml(metadata)}---\n\n" + "\n\n".join(parts) + "\n"
    return f"{text}\n{_seal(text)}\n"


def is_ours(card: str) -> bool:
    """Whether the card was `written` here, and not touched since: then it says nothing that its next writing would
    lose.
    """
    text, _, seal = card.rstrip("\n").rpartition("\n\n")
    return seal == _seal(f"{text}\n")


def _seal(text: str) -> str:
    return f"<!-- by surgery, {hashlib.sha256(text.encode()).hexdigest()[:16]} -->"


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)) if values else ""


def _steps(manifest: Manifest) -> list[str]:
    """One numbered line for each surgery, one below it for each thing that it lists."""
    if not manifest.history:
        return ["1. the same tensors, in other shards"]
    lines = []
    for number, step in enumerate(manifest.history, 1):
        plain = {k: v for k, v in step.items() if k != "surgery" and not _rows(v)}
        lines.append(f"{number}. `{step.get('surgery')}`{_said(plain)}")
        lines += [f"   - {key}{_said(row)}" for key, value in step.items() if _rows(value) for row in value]
    return lines


def _rows(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _said(values: Mapping[str, Any]) -> str:
    shown = [f"{key} {_short(value)}" for key, value in values.items() if value not in (None, "", [], (), {}, 0)]
    return f": {', '.join(shown)}" if shown else ""


def _short(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return f"`{text}`" if len(text) <= 80 else f"`{text[:77]}…`"


def _digests(manifest: Manifest) -> str:
    return ", or the ".join(dict.fromkeys(str(entry.get("digest", "digest")) for entry in manifest.inputs)) or "digest"


def _inputs(manifest: Manifest) -> list[str]:
    rows = ["| input | file | bytes | digest |", "|---|---|---|---|"]
    for entry in manifest.inputs:
        files = entry.get("files") or {}
        for name, about in files.items():
            digest = about.get("sha256") or about.get("git")
            rows.append(f"| {entry.get('role')} `{entry.get('name')}` | `{name}` | {about.get('size')} | `{digest}` |")
    return rows
