"""Composites whose part ties its own embedding and head, by the flag of a nested config: which of their names may be
tied is told by neither class nor flag of the whole.

    EncoderDecoderModel    config.json: decoder: tie_word_embeddings    decoder.bert.embeddings…, decoder.cls…

Read from transformers 5.23: classes made of other classes, which a nested config names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .families import is_tied

# (what the part's names begin with, its entry in config.json) -> the classes.
_PARTS: Mapping[tuple[str, str], str] = {
    ("decoder.", "decoder"): "EncoderDecoderModel SpeechEncoderDecoderModel VisionEncoderDecoderModel",
    ("decoder.", "text_config"): "Pix2StructForConditionalGeneration",
    ("language_model.", "text_config"): (
        "Blip2ForConditionalGeneration Blip2Model InstructBlipForConditionalGeneration"
        " InstructBlipVideoForConditionalGeneration Llama4ForConditionalGeneration"
    ),
    ("text_model.", "text_config"): "Kosmos2ForConditionalGeneration Kosmos2_5ForConditionalGeneration",
    ("generator.", "generator"): "RagModel",
    ("rag.generator.", "generator"): "RagSequenceForGeneration RagTokenForGeneration",
}


def tied_part(config: Mapping[str, Any]) -> tuple[str, str]:
    """(what the names of the part begin with that ties for itself, its entry in config.json); empty where none does."""
    name = str(next(iter(config.get("architectures") or []), ""))
    for (prefix, entry), classes in _PARTS.items():
        part = config.get(entry)
        if name in classes.split() and isinstance(part, Mapping) and is_tied({**part, "architectures": None}):
            return prefix, entry
    return "", ""
