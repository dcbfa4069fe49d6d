"""Whether an adapter belongs to the base that it is merged into: what it says of its base, against what is known of
the one given.

Shapes fit a base and its Instruct model alike, and Mistral and Qwen of a size; only names and digests tell them
apart.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...adapters.kinds import changes_base
from ...checkpoint import Checkpoint
from ...errors import AdapterError, FormatError, SurgeryError
from ...evaluation.read import content
from ...files.card import CARD, metadata_of
from ...files.folder import folder_at
from ...files.manifest import Manifest, read_manifest
from ...files.peft import Adapter
from ...files.refs import has_scheme, parse_ref
from ...files.strict import parse_object
from ...lazy.tensor import File
from .image_base import check_architecture

_CACHED = re.compile(r".*/models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[^/]+)/?")
_PARENT = re.compile(r"transformers\.models\.(?P<type>\w+)\..+")
_WIDTHS = ("hidden_size", "n_embd", "d_model")
# Steps after which the weights are still those of the model that was opened.
_SAME = frozenset("add cast convert drop fuse keep rename reshard split tie unmerge untie".split())
_SAID_DIGEST = "sha256 of the whole file"


def check_base(base: Checkpoint, adapters: Sequence[Adapter], *, any_base: bool) -> list[str]:
    """Notes on adapters that say that their base is another one. Raises AdapterError for one of another model type,
    unless `any_base`.
    """
    names, made_of, commit = _names(base)
    notes = []
    for one in (adapter for adapter in adapters if adapter.inputs and adapter.path != base.path):
        if not any_base:
            _check_type(base, one)
            _check_width(base, one)
            check_architecture(base, one)
        notes += _other_name(base, one, names, made_of) or _other_commit(one, commit) or _other_digests(base, one)
    return notes


def _check_type(base: Checkpoint, adapter: Adapter) -> None:
    """The model type that the adapter was trained on is the base's, as far as it is known."""
    ours, theirs = str(base.config.get("model_type") or ""), _type_of(adapter)
    converted = {str(step.get("from")) for step in base.history if step.get("surgery") == "convert"}
    classes = base.config.get("architectures") or ()
    known = not ours or not theirs or any(_akin(theirs, kind) for kind in (ours, *converted))
    if known or _class_of(adapter) in classes:
        return
    raise AdapterError(
        f"the adapter was trained on a model of type `{theirs}`, and this base is of type `{ours}`",
        where=[adapter.path, f"base_model_name_or_path = {adapter.config.get('base_model_name_or_path')!r}", base.path],
        help="give the base that it was trained on; if this one is meant: --any-base",
    )


def _type_of(adapter: Adapter) -> str:
    """The model type of the adapter's own base: from the class that PEFT noted, or from the base itself where it is
    here.
    """
    mapping = adapter.config.get("auto_mapping")
    parent = mapping.get("parent_library") if isinstance(mapping, Mapping) else None
    if isinstance(parent, str) and (found := _PARENT.fullmatch(parent)):
        return found["type"]
    return str(_config_of(adapter).get("model_type") or "")


def _config_of(adapter: Adapter) -> Mapping[str, Any]:
    """The config.json of the adapter's own base, where that is here; else empty."""
    said = named(adapter)
    if not said or has_scheme(said) or not os.path.isfile(path := os.path.join(said, "config.json")):
        return {}
    with open(path, "rb") as stream:
        raw = stream.read(1 << 20)
    try:
        return parse_object(raw, FormatError)
    except SurgeryError:
        return {}


def _check_width(base: Checkpoint, adapter: Adapter) -> None:
    """The model that the adapter was trained on is as wide as the base, as far as it is known: some kinds hold nothing
    that has a weight's size.
    """
    theirs = _config_of(adapter)
    for key in _WIDTHS:
        ours, wide = base.config.get(key), theirs.get(key)
        if type(ours) is int and type(wide) is int and ours != wide:
            raise AdapterError(
                f"the adapter was trained on a model of {key} {wide}, and this base has {ours}",
                where=[adapter.path, f"base_model_name_or_path = {named(adapter)!r}", base.path],
                help="give the base that it was trained on; if this one is meant: --any-base",
            )


def _class_of(adapter: Adapter) -> str:
    mapping = adapter.config.get("auto_mapping")
    found = mapping.get("base_model_class") if isinstance(mapping, Mapping) else ""
    return found if isinstance(found, str) else ""


def of_other_class(base: Checkpoint, adapters: Sequence[Adapter]) -> list[str]:
    """Notes on adapters that name another class of the model than config.json does once the base is of the class that
    they need.

    None on the bare body of the model type, or a part of it, such as its encoder: the base has that inside.
    """
    classes, notes = base.config.get("architectures"), list[str]()
    for one in (adapter for adapter in adapters if adapter.inputs and adapter.path != base.path):
        trained = _class_of(one)
        told = trained and isinstance(classes, list) and classes and trained not in classes
        if told and not (trained.endswith("Model") and _akin(_type_of(one), str(base.config.get("model_type") or ""))):
            said = ", ".join(map(str, classes or ()))
            notes.append(
                f"the adapter was trained on {trained}, config.json says {said}: every tensor fits, but is this its"
                " base?"
            )
    return notes


def _akin(one: str, other: str) -> bool:
    """Whether two model types are one, or parts of one: `gemma3_text` is a part of `gemma3`, `xlm-roberta` lies in
    `xlm_roberta`.
    """
    a, b = (re.sub(r"[^a-z0-9]", "", text.lower()) for text in (one, other))
    return a.startswith(b) or b.startswith(a)


def named(adapter: Adapter) -> str:
    """What the adapter says that it was trained on."""
    said = adapter.config.get("base_model_name_or_path")
    return said if isinstance(said, str) else ""


def _names(base: Checkpoint) -> tuple[set[str], set[str], str]:
    """(what the base is called, what it was made of, its commit on the Hub), each as far as it is known."""
    path, commit = os.path.realpath(base.path) if not has_scheme(base.path) else base.path, ""
    names = {path, str(base.config.get("_name_or_path") or "")}
    if has_scheme(base.path):
        ref = parse_ref(base.path)
        names, commit = names | {ref.repo_id}, ref.revision or ""
    for at in (base.path, path):
        if found := _CACHED.fullmatch(at):
            names, commit = names | {f"{found['org']}/{found['name']}"}, found["commit"]
    opened, changed = _manifest_names(base)
    return {name for name in names | opened if name}, changed | _card_names(base), commit


def _manifest_names(base: Checkpoint) -> tuple[set[str], set[str]]:
    """The names of the model in the manifest, as the base's own, or as that which it was made of by more than
    movement.
    """
    manifest = _manifest(base.path)
    names = (
        {str(entry.get("name")) for entry in manifest.inputs if entry.get("role") == "base"} if manifest else set[str]()
    )
    same = all(step.get("surgery") in _SAME for step in base.history)
    return (names, set()) if same else (set(), names)


def _manifest(path: str) -> Manifest | None:
    try:
        folder = folder_at(path)
        return read_manifest(folder) if folder else None
    except SurgeryError:  # what opens the folder says so
        return None


def _card_names(base: Checkpoint) -> set[str]:
    """What the base's card names as the model that it was made of."""
    card = base.files.get(CARD)
    if card is None:
        return set()
    try:
        said = metadata_of(content(card).decode("utf-8")).get("base_model")
    except (UnicodeDecodeError, FormatError):
        return set()
    return {name for name in (said if isinstance(said, list) else [said]) if isinstance(name, str)}


def _leaf(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].casefold()


def names_it(base: Checkpoint, adapter: Adapter) -> bool:
    """Whether what the adapter says that it was trained on is this base's name, or place."""
    said, names = named(adapter), _names(base)[0]
    return bool(said) and (_leaf(said) in {_leaf(name) for name in names} or os.path.realpath(said) in names)


def _other_name(base: Checkpoint, adapter: Adapter, names: set[str], made_of: set[str]) -> list[str]:
    """A note where the adapter names another model than this."""
    said = named(adapter)
    called = {_leaf(name) for name in names}
    if not said or _leaf(said) in called or os.path.realpath(said) in names:
        return []
    if _leaf(said) in {_leaf(name) for name in made_of}:
        return [f"{adapter.path} was trained on {said}; this base was made from that, and is not the same: {base.path}"]
    known = sorted(name for name in names if "/" not in name or not os.path.isabs(name))
    is_called = f", which is called {' or '.join(known)}" if known else ""
    return [
        f"{adapter.path} says that it was trained on {said}; that the base given is the same is taken on trust:"
        f" {base.path}{is_called}"
    ]


def _other_commit(adapter: Adapter, commit: str) -> list[str]:
    """A note where the adapter names another commit of the same repository."""
    said = adapter.config.get("revision")
    if not isinstance(said, str) or not commit or not re.fullmatch(r"[0-9a-f]{40}", said) or said == commit:
        return []
    return [
        f"{adapter.path} was trained on commit {said} of {named(adapter)}, and the base given is of commit {commit}"
    ]


def _other_digests(base: Checkpoint, adapter: Adapter) -> list[str]:
    """A note where the adapter's manifest holds digests of the base's files, and they are others."""
    manifest = _manifest(adapter.path)
    said = _digests(manifest.inputs) if manifest else {}
    ours = {
        _leaf(file.path): file.digest
        for source in base.inputs
        if source.role == "base"
        for file in source.files
        if _whole(file)
    }
    both = sorted(said.keys() & ours.keys())
    other = [name for name in both if said[name] != ours[name]]
    return (
        [f"the manifest of {adapter.path} has other digests of {', '.join(other)} than this base: {base.path}"]
        if other
        else []
    )


def as_trained(base: Checkpoint, adapter: Adapter) -> bool:
    """Whether the adapter's manifest has the digests of the base's files: then it was trained on just these weights."""
    manifest = _manifest(adapter.path)
    said = _digests(manifest.inputs) if manifest else {}
    ours = {
        _leaf(file.path): file.digest
        for source in base.inputs
        if source.role == "base"
        for file in source.files
        if _whole(file)
    }
    weights = {name for name in ours if name.endswith(".safetensors")}
    return bool(weights) and all(said.get(name) == ours[name] for name in weights)


def on_changed(base: Checkpoint, adapters: Sequence[Adapter]) -> list[str]:
    """Notes on adapters that are merged into a base which their initialisation changed."""
    return [
        f"{one.path} was initialised by {init}, which changes its base: that {base.path} is the base as it was then is"
        " taken as said"
        for one in adapters
        if (init := changes_base(one)) and not as_trained(base, one)
    ]


def _whole(file: File) -> bool:
    return file.remote and len(file.digest) == 64


def _digests(inputs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SHA-256 by file, of the inputs whose files were hashed whole."""
    bases = [entry for entry in inputs if entry.get("role") == "base" and entry.get("digest") == _SAID_DIGEST]
    files = [
        (name, about)
        for entry in bases
        for name, about in dict(entry.get("files") or {}).items()
        if isinstance(about, Mapping)
    ]
    return {name: str(about["sha256"]) for name, about in files if about.get("sha256")}
