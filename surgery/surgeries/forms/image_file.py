"""An image model's adapter as the one file that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...checkpoint import Checkpoint
from ...errors import NotSupported
from ...files.peft import Adapter
from ...lazy.tensor import Tensor


def image_file(
    adapter: Adapter,
    made: Sequence[Adapter],
    tensors: Mapping[str, Tensor],
    file: str,
    metadata: Mapping[str, str] | None = None,
) -> Checkpoint:
    """A folder with the file, as a checkpoint; `made` are what became of the adapter on each component. Raises
    NotSupported where there is nothing to write.
    """
    if not tensors:
        raise NotSupported("the adapter has no LoRA", where=[adapter.path], help="give one that has")
    return Checkpoint(
        path=adapter.path,
        tensors=tensors,
        weight_map=dict.fromkeys(tensors, file),
        metadata={file: metadata},
        files={},
        inputs=adapter.inputs,
        stem=file.removesuffix(".safetensors"),
        index_name=f"{file}.index.json",
        dropped={name: tensor for one in (adapter, *made) for name, tensor in one.dropped.items()},
        notes=tuple(dict.fromkeys(note for one in (adapter, *made) for note in one.notes)),
    )
