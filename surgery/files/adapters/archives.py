"""Adapters in archives and pickles that are not read: refused by name, with the way to safetensors."""

from __future__ import annotations

from ...errors import NotACheckpoint
from ..folder import Folder
from ..peft import WEIGHTS

# The ending -> what makes safetensors of it.
WAYS = {
    ".npz": "load it with mlx.core.load, and save it by mlx.core.save_safetensors",
    ".pkl": "where you trust it, load it with the program that wrote it, and save its tensors as safetensors",
    ".pickle": "where you trust it, load it with the program that wrote it, and save its tensors as safetensors",
    ".gguf": "it says that it holds no adapter; on the Hub, fetch it first: hf download",
}


def check_no_archive(folder: Folder, name: str = "") -> None:
    """Raise NotACheckpoint where the file, or all that the folder holds of an adapter, is such an archive."""
    if not name and (folder.has(WEIGHTS) or folder.has("config.json")):
        return
    here = [name] if name else [one for one in folder.names() if folder.has(one) and one.startswith("adapter")]
    for one in here:
        if way := next((way for end, way in WAYS.items() if one.endswith(end)), None):
            raise NotACheckpoint(
                "the adapter is neither safetensors, nor GGUF, nor what torch saves", where=[folder.at(one)], help=way
            )
