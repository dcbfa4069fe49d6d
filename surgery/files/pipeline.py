"""Pipelines of diffusers: a folder with a model_index.json; its components are checkpoints in folders of their own."""

from __future__ import annotations

from ..errors import FormatError
from .folder import Folder
from .strict import MEND, parse_object

MODEL_INDEX = "model_index.json"


def components_of(folder: Folder) -> list[str]:
    """The folders of the components that hold weights in safetensors; none where the folder is no pipeline.

    Raises FormatError for a model_index.json that is none.
    """
    if not folder.has(MODEL_INDEX):
        return []
    where = [folder.at(MODEL_INDEX)]
    content = parse_object(folder.read(MODEL_INDEX), lambda what: FormatError(what, where=where, help=MEND))
    named = [name for name, value in content.items() if isinstance(value, list) and any(value) and "/" not in name]
    return [name for name in named if any(file.endswith(".safetensors") for file in folder.names(name))]
