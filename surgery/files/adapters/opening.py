"""Which adapter is meant: a PEFT folder, or the one file of another tool, which is recognised by its content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...errors import AdapterError, NotACheckpoint, SurgeryError, listed
from ...evaluation.read import sha256
from ...lazy.tensor import Input
from ...opened import takes_opened
from ..folder import Folder, PathLike, locate
from ..peft import CONFIG, Adapter, open_peft
from ..safetensors import tensors_of
from . import image

ENDING = ".safetensors"


@takes_opened
def open_adapter(path: PathLike | Folder, beside: Sequence[PathLike] | None = None) -> Adapter:
    """The adapter at `path`, here or on the Hub, as for `open_checkpoint`: a PEFT folder, or the file of another tool,
    or a folder with one. Raises NotACheckpoint, FormatError, AdapterError, NotSupported, HubError.

    `beside` are safetensors files with what was trained beside LoRA, in the same folder or elsewhere: their tensors
    take the place of the base's. Where it is not given, weights in the folder that look like that are `unread`, and
    such an adapter is not merged; an empty list says that they are none of its own.
    """
    folder, name = locate(path)
    if (found := opened(folder, name)) is None:
        return open_peft(folder, name, beside)
    if beside:
        tip = "give them as adapters of their own"
        raise AdapterError("files are read beside PEFT's adapters alone", where=[found.path], help=tip)
    return found


@takes_opened
def open_adapters(paths: Sequence[PathLike], beside: Sequence[PathLike] | None = None) -> list[Adapter]:
    """The adapters, each with those of the files `beside` that lie in its folder, a single one with all. Raises
    AdapterError for others.
    """
    if beside is None or len(paths) == 1:
        return [open_adapter(path, beside) for path in paths]
    mine = {
        i: [one for one in beside if str(one).startswith(f"{str(path).rstrip('/')}/")] for i, path in enumerate(paths)
    }
    if lost := [str(one) for one in beside if not any(one in files for files in mine.values())]:
        tip = "give files in the adapters' folders, or merge the adapters one after another"
        raise AdapterError("it is not clear which adapter the file belongs to", where=lost, help=tip)
    return [open_adapter(path, mine[i]) for i, path in enumerate(paths)]


def opened(folder: Folder, name: str = "") -> Adapter | None:
    """The adapter in the file `name`, or in the one file of the folder that holds one; None where there is none.

    A folder with an adapter_config.json, or a config.json, is not looked into. Raises NotACheckpoint where several
    files are adapters, and what reading one raises.
    """
    files = [name] if name else _files(folder)
    found = [one for one in files if one.endswith(ENDING) and tool_in(folder, one)]
    if len(found) > 1:
        tip = f"pass the one that you mean: {folder.at(found[0])}"
        raise NotACheckpoint(f"the folder holds {len(found)} adapters", where=[folder.path, *listed(found)], help=tip)
    return _opened(folder, found[0]) if found else None


def tool_in(folder: Folder, name: str) -> str:
    """The tool that wrote the adapter in a safetensors file; "" where none is read there."""
    try:
        return image.tool_of(folder.headers([name])[name][1].entries)
    except SurgeryError:
        return ""


def _files(folder: Folder) -> list[str]:
    if any(folder.has(name) for name in (CONFIG, "config.json", "model_index.json")):
        return []
    return [name for name in folder.names() if name.endswith(ENDING) and folder.has(name)]


def _opened(folder: Folder, name: str) -> Adapter:
    file, header = folder.headers([name])[name]
    file = replace(file, digest=sha256(file), whole=True)
    tensors = tensors_of(file, header)
    adapter = image.read(folder.at(name), tensors, header.metadata)
    used = {one: tensor for one, tensor in tensors.items() if not one.endswith(".alpha")}  # which are in its config
    return replace(adapter, inputs=(Input("adapter", folder.at(name), (file,), used),))
