"""Convert files: the same tensors, out of whatever files they were opened from, in safetensors."""

from __future__ import annotations

from ..checkpoint import Checkpoint
from ..errors import NothingMatched
from ..step import step


@step
def convert_files(checkpoint: Checkpoint) -> Checkpoint:
    """Write the weights of any files that are opened as safetensors, and nothing else: `.bin`, `.pt`, distributed
    checkpoints. The report names what is left behind.

        write(convert_files(open_checkpoint("pytorch_model.bin")), "out")

    Shards stay shards, under the names that loaders know in safetensors; what lies in pieces over its files gets
    shards by the Hub's own rule. What is no part of the model is left behind, and the notes name it.
    Raises NothingMatched where safetensors were opened.
    """
    formats = {part.format for part in (checkpoint, *checkpoint.parts.values())} - {""}
    if not formats:
        tip = "surgery reshard spreads them over other shards; pass another file by its path where it is meant"
        raise NothingMatched("the weights are safetensors already", where=[checkpoint.path], help=tip)
    return checkpoint.with_step({"surgery": "convert_files", "from": "; ".join(sorted(formats))})
