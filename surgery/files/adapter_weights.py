"""The weights of an adapter in one file, safetensors or torch's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..evaluation.read import sha256
from ..lazy.tensor import Input, Tensor
from .folder import Folder
from .gguf.adapter import ENDING, read_adapter
from .safetensors import tensors_of
from .torchfile.reader import ENDINGS, check_here, read_torch


@dataclass(frozen=True)
class Weights:
    """The tensors of a file by their names there, and the file as an input."""

    source: Input
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def is_weights(name: str) -> bool:
    """Whether a file of that name can be read as an adapter's weights."""
    return name.endswith((".safetensors", *ENDINGS))


def is_gguf_here(folder: Folder, name: str) -> bool:
    """Whether the file is called as GGUF is, and lies on this machine: an adapter, or a model."""
    return name.endswith(ENDING) and not folder.file(name).remote


def read_weights(folder: Folder, name: str) -> Weights:
    """What the file holds. On the Hub it is small enough to be fetched, and checked, as a whole before its values are
    asked for.
    """
    if name.endswith(".safetensors"):
        file, header = folder.headers([name])[name]
        file = replace(file, digest=sha256(file), whole=True)
        tensors = tensors_of(file, header)
        return Weights(Input("adapter", folder.at(name), (file,), tensors), tensors, header.metadata)
    if name.endswith(ENDING) and (held := read_adapter(folder.file(name).path)):
        file, stored, said = held
        file = replace(file, digest=sha256(file), whole=True)
        return Weights(Input("adapter", folder.at(name), (file,), stored), stored, said)
    found = read_torch(check_here(folder, name).path)
    file = replace(found.file, digest=sha256(found.file), whole=True)
    notes = (f"{folder.at(name)} was read as data, and nothing of it was run", *found.notes)
    return Weights(Input("adapter", folder.at(name), (file,), found.leaves, found.partly), found.tensors, None, notes)
