"""The formats of weights that are opened beside safetensors: one row each, which says by content whether it is meant.

    read(folder, name)    the weights in the folder, or in its file `name`, as `Opened`; None for what is no such format

A new format is a file that turns bytes into names and lazy tensors, and a row here. Where a folder holds safetensors,
these are preferred, as loaders do, and only formats of safetensors are asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..errors import NotACheckpoint
from .folder import Folder
from .gguf.model import read_gguf
from .opened import Opened
from .peft import CONFIG as ADAPTER_CONFIG
from .shards import read_safetensors
from .spread_safetensors import read_spread
from .torchfile.consolidated import read_consolidated
from .torchfile.model import read_dcp, read_deepspeed, read_files, read_rank_files

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Format:
    """A format, by its reader; `of_safetensors` is one whose files are called so."""

    read: Callable[[Folder, str], Opened | None]
    of_safetensors: bool = False


FORMATS = (
    Format(read_spread, of_safetensors=True),
    Format(read_gguf),
    Format(read_dcp),
    Format(read_rank_files),
    Format(read_deepspeed),
    Format(read_consolidated),
    Format(read_files),
)


def read_weights(folder: Folder, name: str = "") -> Opened:
    """The weights in the folder, or in its file `name`, in whichever format.

    Raises NotACheckpoint where there are none, or where it is not clear which; and what the readers do.
    """
    if (found := _other(folder, name)) is not None:
        return found
    if name and not name.endswith((SAFETENSORS, ".json")):
        what, tip = "neither safetensors, nor GGUF, nor what torch saves", "pass a folder, or a file of weights"
        raise NotACheckpoint(what, where=[folder.at(name)], help=tip)
    return read_safetensors(folder, name)


def _other(folder: Folder, name: str) -> Opened | None:
    """The weights where they are no plain safetensors; None where they are, and beside an adapter's config."""
    here = folder.names()
    safe = name.endswith(SAFETENSORS) if name else any(SAFETENSORS in one for one in here)
    rows = [row for row in FORMATS if row.of_safetensors == safe and (name or ADAPTER_CONFIG not in here)]
    return next((found for row in rows if (found := row.read(folder, name)) is not None), None)
