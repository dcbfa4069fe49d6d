"""The formats of weights that are opened beside safetensors: one row each, which says by content whether it is meant.

    read(folder, name)    the weights in the folder, or in its file `name`, as `Opened`; None for what is no such format

A new format is a file that turns bytes into names and lazy tensors, and a row here. Where a folder holds safetensors,
these are preferred, as loaders do, and only formats of safetensors are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from ..errors import NotACheckpoint, SurgeryError, listed, series
from .folder import Folder
from .gguf.model import read_gguf
from .opened import Opened
from .peft import CONFIG as ADAPTER_CONFIG
from .refs import has_scheme
from .shards import read_safetensors
from .spread_safetensors import read_spread
from .torchfile.consolidated import read_consolidated
from .torchfile.model import read_dcp, read_deepspeed, read_files, read_rank_files

SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Format:
    """A format, by its reader; `of_safetensors` is one whose files are called so. Of several, the first row counts."""

    read: Callable[[Folder, str], Opened | None]
    of_safetensors: bool = False
    derived: bool = False  # made of other files for one program, and never a copy of them


FORMATS = (
    Format(read_spread, of_safetensors=True),
    Format(read_dcp),
    Format(read_rank_files),
    Format(read_deepspeed),
    Format(read_consolidated),
    Format(read_files),
    Format(read_gguf, derived=True),
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
    found = read_safetensors(folder, name)
    return found if name else replace(found, notes=(*found.notes, *_told_apart(folder, found)))


def _other(folder: Folder, name: str) -> Opened | None:
    """The weights where they are no plain safetensors; None where they are, and beside an adapter's config."""
    here = folder.names()
    safe = name.endswith(SAFETENSORS) if name else any(SAFETENSORS in one for one in here)
    rows = [row for row in FORMATS if row.of_safetensors == safe and (name or ADAPTER_CONFIG not in here)]
    return next((found for row in rows if (found := row.read(folder, name)) is not None), None)


def _told_apart(folder: Folder, taken: Opened) -> list[str]:
    """What a user should know of weights in another format beside the safetensors that were taken: where they hold
    other tensors, one of the two is of another model, or of another day. A tied tensor may be stored under one name.
    """
    other: Opened | None = None
    with suppress(SurgeryError):
        rows = [] if has_scheme(folder.path) else [row for row in FORMATS if not (row.of_safetensors or row.derived)]
        other = next((found for row in rows if (found := row.read(folder, "")) is not None), None)
    if other is None:
        return []
    here, there, count = taken.tensors, other.tensors, Counter(other.tensors.values())
    differ = {
        "there alone": [name for name in there if name not in here and count[there[name]] == 1],
        "in safetensors alone": [name for name in here if name not in there],
        "of another shape": [name for name in there if name in here and here[name].shape != there[name].shape],
    }
    told = [f"{what} {series(listed(names, 3))}" for what, names in differ.items() if names]
    return [f"safetensors were taken, and beside them is no copy ({other.what}): {'; '.join(told)}"] if told else []
