"""The files of a tokenizer: which they are, and those that lie in a folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..evaluation.read import content
from ..lazy.tensor import File
from .folder import Folder
from .strict import any_value

WORDS = frozenset(  # what a token is: of two vocabularies, the files of one say nothing of the other
    "tokenizer.json added_tokens.json special_tokens_map.json vocab.json merges.txt vocab.txt spiece.model"
    " tokenizer.model sentencepiece.bpe.model source.spm target.spm tekken.json".split()
)
SETTINGS = "tokenizer_config.json"
TEMPLATES = frozenset({"chat_template.jinja", "chat_template.json"})
PROCESSORS = frozenset("preprocessor_config.json processor_config.json video_preprocessor_config.json".split())
OF_TOKENIZERS = WORDS | TEMPLATES | PROCESSORS | {SETTINGS}


def tokenizer_in(folder: Folder | None) -> dict[str, File]:
    """What a folder has of a tokenizer, by name."""
    names = [name for name in folder.names() if name in OF_TOKENIZERS] if folder else []
    more = [f"additional_chat_templates/{name}" for name in folder.names("additional_chat_templates")] if folder else []
    return {name: folder.file(name) for name in (*names, *more)} if folder else {}


def alike(one: File | bytes | None, other: File | bytes) -> bool:
    """Whether two files have the same content."""
    if one is None:
        return False
    sizes = [len(file) if isinstance(file, bytes) else file.size for file in (one, other)]
    return sizes[0] == sizes[1] and content(one) == content(other)


def settings_in(file: File) -> Mapping[str, Any]:
    """What a tokenizer_config.json says; nothing where it is broken."""
    try:
        found = any_value(content(file))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
