"""Vocabularies of another size: adapters that hold embeddings and heads with more rows, or fewer, than the base's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...checkpoint import Checkpoint
from ...errors import AdapterError
from ...models.families import EMBEDDINGS, HEADS, VOCABULARY_BIASES
from ...names import natural


def with_vocabulary(checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
    """The checkpoint with config.json of a vocabulary that adapters resized, where they did."""
    both = checkpoint.tensors.keys() & base.tensors.keys()
    resized = {n: checkpoint.tensors[n].shape[0] for n in both if checkpoint.tensors[n].shape != base.tensors[n].shape}
    if not resized:
        return checkpoint
    before = {base.tensors[name].shape[0] for name in resized}
    left = [
        n
        for n, t in checkpoint.tensors.items()
        if is_vocabulary(n) and t.shape[:1] not in {(size,) for size in resized.values()}
    ]
    left = [n for n in left if checkpoint.tensors[n].shape[0] in before]
    if left or len({*resized.values()}) > 1:
        raise AdapterError(
            "the adapter resizes a part of the vocabulary's tensors, and not the others",
            where=[f"{n}: {checkpoint.tensors[n].shape[0]} rows" for n in sorted([*resized, *left], key=natural)],
            help="save the adapter with save_embedding_layers=True, or with the other one in modules_to_save, so that"
            " embedding and head are both in it",
        )
    size = next(iter(resized.values()))
    checkpoint = checkpoint.with_config(_resized(base.config, size))
    note = f"the vocabulary has {size} entries, as the adapter's tensors, and config.json says so"
    return replace(checkpoint, notes=(*checkpoint.notes, note))


def _resized(config: Mapping[str, Any], size: int) -> dict[str, Any]:
    """config.json with another vocab_size, wherever it says one of the text model."""
    text = config.get("text_config")
    nested = isinstance(text, Mapping) and "vocab_size" in text
    made = dict(config) | (
        {"text_config": {**text, "vocab_size": size}} if nested and isinstance(text, Mapping) else {}
    )
    return made | ({"vocab_size": size} if "vocab_size" in config or not nested else {})


def is_head(module: str) -> bool:
    return module.rpartition(".")[2] in EMBEDDINGS | HEADS


def is_vocabulary(name: str) -> bool:
    """Whether the tensor has an entry for each word."""
    return is_head(name.rpartition(".")[0]) or name in VOCABULARY_BIASES
