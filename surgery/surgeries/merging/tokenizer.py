"""The tokenizer and the chat template of a merge: the adapter's, since the merged weights were trained with them.

Trainers save both beside the adapter, resized vocabulary or not: a base model becomes a chat model by its adapter's
template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...checkpoint import Checkpoint
from ...errors import AdapterError, NotACheckpoint, listed, series
from ...files.folder import folder_at
from ...files.peft import Adapter
from ...files.tokenizer_files import SETTINGS, TEMPLATES, WORDS, alike, settings_in, tokenizer_in
from ...lazy.tensor import File

WHERE = "--tokenizer base keeps the base's, in Python tokenizer='base'"


def with_tokenizer(checkpoint: Checkpoint, adapters: Sequence[Adapter], choice: str | None) -> Checkpoint:
    """The checkpoint with the tokenizer that was chosen: "base", "adapter", or that in a folder; None: the
    adapters', if they have one.

    A note names every file that is not the base's any more. Raises AdapterError where adapters bring different ones,
    or where the chosen one is not there.
    """
    if choice == "base":
        return checkpoint
    chosen = _chosen(adapters, choice)
    new = {name: file for name, file in chosen.items() if not alike(checkpoint.files.get(name), file)}
    gone = _contradicted(checkpoint.files, chosen, new)
    if not new and not gone:
        return checkpoint
    files = {name: file for name, file in checkpoint.files.items() if name not in gone} | new
    whose = "the adapter's" if choice in (None, "adapter") else f"that of {choice}"
    notes = [f"the tokenizer is {whose}: {', '.join(sorted(new))}; {WHERE}"] if new else []
    notes += [f"left out, since the base's contradict the new tokenizer: {', '.join(sorted(gone))}"] if gone else []
    return replace(checkpoint, files=files, notes=(*checkpoint.notes, *notes, *_beyond(checkpoint, chosen)))


def _chosen(adapters: Sequence[Adapter], choice: str | None) -> dict[str, File]:
    """The files of the one tokenizer that is meant; none where no adapter has one and none was asked for."""
    if choice not in (None, "adapter"):
        if found := tokenizer_in(folder_at(choice)):
            return found
        raise NotACheckpoint(
            "no tokenizer is there",
            where=[choice],
            help="--tokenizer takes adapter, base, or a folder with a tokenizer",
        )
    every = {one.path: files for one in adapters if one.inputs and (files := tokenizer_in(folder_at(one.path)))}
    if not every and choice == "adapter":
        where = [one.path for one in adapters]
        raise AdapterError("the adapter has no tokenizer", where=where, help="--tokenizer base carries the base's")
    first, *others = [*every.values()] or [dict[str, File]()]
    if any(other.keys() != first.keys() or not all(alike(other[n], first[n]) for n in first) for other in others):
        tip = f"name the folder with the right one: --tokenizer {next(iter(every))}; {WHERE}"
        raise AdapterError("the adapters bring different tokenizers", where=list(every), help=tip)
    return first


def _contradicted(base: Mapping[str, File | bytes], chosen: Mapping[str, File], new: Mapping[str, File]) -> set[str]:
    """The base's files that loaders would read beside the chosen tokenizer, and that belong to another one."""
    words = WORDS & new.keys() & base.keys() and SETTINGS in chosen
    gone = {name for name in base if name in WORDS and name not in chosen} if words else set[str]()
    told = SETTINGS in new and "chat_template" in settings_in(chosen[SETTINGS])  # loaders prefer a file beside it
    return gone | ({name for name in base if name in TEMPLATES and name not in chosen} if told else set())


def _beyond(checkpoint: Checkpoint, chosen: Mapping[str, File]) -> list[str]:
    """A note on tokens that the embedding has no row for: a pad token that was added, and the vocabulary not
    resized.
    """
    size = checkpoint.config.get("vocab_size")
    added = settings_in(chosen["tokenizer.json"]).get("added_tokens") if "tokenizer.json" in chosen else None
    if not isinstance(size, int) or not isinstance(added, list):
        return []
    tokens = [token for token in added if isinstance(token, dict) and isinstance(token.get("id"), int)]
    names = [str(token.get("content")) for token in tokens if token["id"] >= size]
    many = f"{len(names)} tokens of the tokenizer have no row in the vocabulary of {size}"
    return [f"{many}, as in training: {series(listed(names, 3))}"] if names else []
